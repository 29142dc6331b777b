"""What a client in any language does: learn the service from the server itself, and call it. No generated code.

    python examples/reflect.py localhost:50051 photo.jpg  30 20 110 90  70 50

takes the server's address, an image, two corners of a box, a point inside; prints the answer, the mask as polygons.
"""

import hashlib
import sys

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

SERVICE = "iog.v1.SegmentationService"


def main(address: str, path: str, *numbers: str) -> None:
    """Segment one object, uploading the image if the server does not hold it."""
    x0, y0, x1, y1, x, y = map(float, numbers)
    with open(path, "rb") as file:
        data = file.read()
    with grpc.insecure_channel(address) as channel:
        service = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(SERVICE)

        def rpc(name: str, kind: str, request: object) -> object:
            method = service.methods_by_name[name]
            call = getattr(channel, kind)(
                f"/{SERVICE}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
            )
            make = message_factory.GetMessageClass(method.input_type)
            return call(iter([make(**part) for part in request]) if kind == "stream_unary" else make(**request))

        segment = {
            "digest": hashlib.sha256(data).hexdigest(),
            "inside_outside": {"box": {"a": {"x": x0, "y": y0}, "b": {"x": x1, "y": y1}}, "inside": {"x": x, "y": y}},
            "mask_encoding": "MASK_ENCODING_POLYGONS",
        }
        try:
            response = rpc("Segment", "unary_unary", segment)
        except grpc.RpcError as first:
            if reason(first) != "IMAGE_NOT_HELD":
                raise
            chunks = ({"chunk": data[i : i + 65536]} for i in range(0, len(data), 65536))
            rpc("UploadImage", "stream_unary", [{"header": {"total_bytes": len(data)}}, *chunks])
            try:
                response = rpc("Segment", "unary_unary", segment)
            except grpc.RpcError as second:  # another replica answers, or many images are clicked on at a time
                if reason(second) != "IMAGE_NOT_HELD":
                    raise
                del segment["digest"]
                response = rpc("Segment", "unary_unary", {"encoded_image": data, **segment})
    sys.stdout.write(json_format.MessageToJson(response))


def reason(error: grpc.RpcError) -> str:
    """What programs can tell errors apart by; empty if gRPC itself made it."""
    status, info = rpc_status.from_call(error), ErrorInfo()
    return next((info.reason for detail in (status.details if status else ()) if detail.Unpack(info)), "")


if __name__ == "__main__":
    if len(sys.argv) != 9:
        sys.exit(__doc__)
    main(*sys.argv[1:])

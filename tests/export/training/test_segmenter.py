from iog_export.evaluation.protocol import Protocol
from iog_export.evaluation.session import MODEL, annotated
from iog_export.networks import IOG, NetworkSpec
from iog_export.training.segmenter import torch_segmenter


def test_torch_segmenter_encodes_once_per_object(shapes_data, geometry):
    network = IOG(NetworkSpec("resnet18", width=8, normalize=True))
    encoded = []
    encode = network.encode
    network.encode = lambda inputs: encoded.append(inputs.shape) or encode(inputs)  # type: ignore[method-assign]
    first_two = shapes_data.only(shapes_data.items[:2])
    segment = torch_segmenter(network, geometry.crop, geometry.guidance)
    records = annotated(segment, first_two, Protocol(clicks=5))
    assert encoded == [(1, 5, 64, 64)] * 2
    assert all(len(record.tracks[MODEL].ious) == 3 for record in records)

import numpy as np
import pytest
from iog.bundle import Bundle
from iog.crop import Crop, CropSpec
from iog.guidance import GuidanceSpec
from iog.image import Image
from iog_export.evaluation.protocol import Protocol
from iog_export.evaluation.session import MODEL, annotated
from iog_export.networks import IOG, NetworkSpec, randomize
from iog_export.segmenter import torch_segmenter
from iog_export.verify import reference_logits

CROP = CropSpec(64, relax_pixels=0, relax_fraction=0.12, interpolation="area")
GUIDANCE = GuidanceSpec(64, 10 * 64 / 512)


@pytest.mark.parametrize(("refine", "runs"), [(True, 2), (False, 6)])
def test_it_encodes_once_per_object_and_without_refinement_branch_once_per_click(shapes_data, refine, runs):
    network = IOG(NetworkSpec("resnet18", refine=refine, width=8, normalize=True))
    encoded = []
    encode = network.encode
    network.encode = lambda inputs: encoded.append(inputs.shape) or encode(inputs)  # type: ignore[method-assign]
    first_two = shapes_data.only(shapes_data.items[:2])
    records = annotated(torch_segmenter(network, CROP, GUIDANCE), first_two, Protocol(clicks=5))
    assert encoded == [(1, 5, 64, 64)] * runs
    assert all(len(record.tracks[MODEL].ious) == 3 for record in records)


@pytest.mark.parametrize("refine", [True, False])
def test_its_masks_are_those_of_the_whole_network(shapes_data, split_bundle, refine):
    network = IOG(NetworkSpec("resnet18", refine=refine, width=8, normalize=True))
    randomize(network, 1)
    like = Bundle.open(split_bundle)
    manifest = like.manifest.model_copy(update={"crop": like.manifest.crop.model_copy(update={"size": 64})})
    bundle = Bundle(like.path, manifest, like.digest, like.graphs)
    target = shapes_data[0]
    image = Image.from_array(target.photograph.pixels)
    first = Protocol().opening(target)
    crop = Crop.around(first.box, bundle.crop)
    x0, y0, x1, y1 = crop.visible(image.size)
    later = first.with_click(60, 50, positive=False)
    one, other = (crop.scores(reference_logits(network, bundle, image, p), image.size) for p in (first, later))
    middle = float(np.median(one))
    segment = torch_segmenter(network, bundle.crop, bundle.guidance, middle)
    for prompt, scores in ((first, one), (later, other)):
        assert (segment(image.pixels, prompt)[y0:y1, x0:x1] == (scores > middle)).mean() > 0.999
    assert ((one > middle) != (other > middle)).mean() > 0.002  # the click matters

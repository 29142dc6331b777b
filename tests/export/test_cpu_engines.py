"""The default model on engines for CPUs: the same numbers from each, alone or among others in a batch."""

import numpy as np
import pytest
from iog.arrays import Array
from iog.backends import open_backend
from iog.backends.base import open_graphs
from iog.bundle import Bundle
from iog.image import Image
from iog.predictor import Predictor
from iog_export.quantize import Recorder
from iog_export.verify import PHOTOGRAPHS, cases

CASES = [case for case in cases([PHOTOGRAPHS / "chelsea.jpg"], Bundle.open().crop) if "inner" in case.name]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


@pytest.fixture(scope="module")
def heads(bundle: Bundle) -> list[dict[str, Array]]:
    """What the head is given for five sequences of clicks on one object and a mirrored one."""
    recorder = Recorder()
    with Predictor(bundle, recorder) as predictor:
        for case in CASES:
            mirrored = Image.from_array(np.ascontiguousarray(case.image.pixels[:, ::-1]))
            for image in (case.image, mirrored):
                for prompt in case.prompts[1:4]:
                    predictor.segment(image, prompt)
    return [dict(inputs) for sample in recorder.samples for inputs in sample.heads]


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_logits_do_not_depend_on_what_else_is_in_the_batch(
    bundle: Bundle, heads: list[dict[str, Array]], engine: str
) -> None:
    head = open_graphs(open_backend(engine), bundle)["head"]
    alone = [head.run(inputs)[0][0] for inputs in heads]
    assert len(alone) == 6
    for chosen in ([0, 1, 2, 3, 4, 5], [5, 0], [3, 3, 1]):
        together = head.run({name: np.concatenate([heads[i][name] for i in chosen]) for name in heads[0]})[0]
        for logits, i in zip(together, chosen, strict=True):
            np.testing.assert_allclose(logits, alone[i], atol=1e-3 * alone[i].std())
    assert np.abs(alone[0] - alone[3]).max() > alone[0].std()  # the two objects do differ


def test_openvino_gives_what_onnxruntime_gives(bundle: Bundle) -> None:
    with Predictor(bundle, open_backend("ort")) as a, Predictor(bundle, open_backend("openvino")) as b:
        for case in CASES:
            for prompt in case.prompts:
                want, have = a.segment(case.image, prompt, scores=True), b.segment(case.image, prompt, scores=True)
                assert want.logits is not None
                assert have.logits is not None
                np.testing.assert_allclose(have.logits, want.logits, atol=2e-3 * want.logits.std())  # fp16 features
                assert np.count_nonzero(want.mask != have.mask) <= 1e-4 * want.mask.size

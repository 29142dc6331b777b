import copy
import hashlib
import os
import pickle

import pytest
import torch
from iog_export.checkpoint import CheckpointError, infer_spec, load_checkpoint
from iog_export.networks import IOG, NetworkSpec

SPEC = NetworkSpec("resnet18", width=16)


@pytest.fixture(scope="module")
def untrained():
    return IOG(SPEC)


@pytest.fixture
def network(untrained):
    return copy.deepcopy(untrained)


@pytest.fixture(scope="module")
def trained():
    return IOG(SPEC).state_dict()


@pytest.fixture
def weights(trained):
    return copy.deepcopy(trained)


@pytest.fixture
def saved(tmp_path):
    def save(content, **options):
        path = tmp_path / "network.pth"
        torch.save(content, path, **options)
        return path

    return save


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])  # the authors' files are of the legacy format
@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"epoch": 99, "state_dict": weights},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {key: v for key, v in weights.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["plain", "wrapped", "data-parallel", "without-counters"],
)
def test_checkpoints_load_however_they_were_saved(saved, weights, network, wrap, zipped):
    path = saved(wrap(weights), _use_new_zipfile_serialization=zipped)
    info = load_checkpoint(path, network)
    assert equal(network.state_dict(), weights)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info.file == "network.pth"


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        NetworkSpec("resnet18-half", width=8),
        NetworkSpec("resnet34", refine=False, width=64),
        NetworkSpec("resnet101"),
    ],
)
def test_the_network_is_recognised_by_its_weights(spec):
    with torch.device("meta"):
        assert infer_spec(IOG(spec).state_dict()) == spec


@pytest.mark.parametrize("stem", [None, torch.zeros(())])
def test_a_checkpoint_without_a_proper_stem_is_of_the_published_ones(refusal, saved, weights, stem):
    del weights["backbone.conv1.weight"]
    message = refusal(saved(weights if stem is None else weights | {"backbone.conv1.weight": stem}))
    assert "backbone.conv1.weight" in message
    assert "incomplete or altered" in message


def test_weights_of_something_else_are_not_recognised():
    assert infer_spec(torch.nn.Linear(2, 2).state_dict()) is None


@pytest.fixture
def refusal(network):
    def load(path, network=network):
        before = copy.deepcopy(network.state_dict())
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path, network)
        assert equal(network.state_dict(), before)  # a refused checkpoint changes nothing
        assert str(path) in str(caught.value)
        return str(caught.value)

    return load


def test_missing_tensors_are_counted_and_named(refusal, saved, weights):
    del weights["iog_points.12.weight"], weights["psp4.bottleneck.0.weight"]
    message = refusal(saved(weights))
    assert "2 tensors missing (iog_points.12.weight, psp4.bottleneck.0.weight)" in message
    assert "incomplete or altered" in message


def test_unknown_tensors_are_named(refusal, saved, weights):
    assert "1 tensor unknown (head.bias)" in refusal(saved(weights | {"head.bias": torch.zeros(3)}))


def test_tensors_of_another_shape_are_named(refusal, saved, weights):
    weights["psp4.bottleneck.1.bias"] = torch.zeros(7)
    assert "1 tensor of another shape (psp4.bottleneck.1.bias is [7], expected [32])" in refusal(saved(weights))


def test_the_wrong_network_is_told_which_one_it_is(refusal, saved, weights):
    other = IOG(NetworkSpec("resnet34", refine=False, width=32))
    message = refusal(saved(weights), other)
    assert "It looks like resnet18 with refinement branch, width 16: name that network" in message
    assert ", ...)" in message  # of many names the first few


def test_weights_of_another_kind_of_network_are_refused(refusal, saved):
    assert "It is not an IOG checkpoint" in refusal(saved(torch.nn.Linear(2, 2).state_dict()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(refusal, saved, weights, value):
    weights["psp4.bottleneck.1.running_var"][3] = value
    assert "NaN or infinite values in 1 of" in refusal(saved(weights))


class Program:
    def __reduce__(self):
        return os.mkdir, ("/tmp/ran-code-from-a-checkpoint",)


def test_code_in_a_checkpoint_is_not_run(refusal, saved):
    assert "code in it is never run" in refusal(saved({"weight": Program()}))
    assert not os.path.exists("/tmp/ran-code-from-a-checkpoint")


def test_a_pickled_module_is_refused(refusal, saved):
    assert "Save the weights alone" in refusal(saved(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" + bytes(50)]
)
def test_files_that_are_no_checkpoint_are_refused(refusal, tmp_path, content):
    (tmp_path / "network.pth").write_bytes(content)
    assert "no torch file" in refusal(tmp_path / "network.pth")


def test_foreign_pickles_are_refused(refusal, tmp_path):
    (tmp_path / "network.pth").write_bytes(pickle.dumps({"weight": Program()}))
    assert "no torch file" in refusal(tmp_path / "network.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_checkpoint_is_refused(refusal, saved, weights, zipped):
    path = saved(weights, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "no torch file, or is incomplete" in refusal(path)


def test_a_changed_byte_in_a_checkpoint_is_found(refusal, saved, weights):
    path = saved(weights)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "the checksum of" in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.long(),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.to_sparse(),
        lambda weight: torch.empty_like(weight, device="meta"),
    ],
    ids=["integers", "complex", "sparse", "without values"],
)
def test_tensors_that_are_no_plain_numbers_are_named(refusal, saved, weights, change):
    weights["psp4.bottleneck.1.bias"] = change(weights["psp4.bottleneck.1.bias"])
    assert "1 tensor of another type (psp4.bottleneck.1.bias)" in refusal(saved(weights))


@pytest.mark.parametrize("content", [torch.zeros(3), {"state_dict": {"a": 1}}, {"a": "b"}, {1: torch.zeros(2)}, [1]])
def test_content_other_than_named_tensors_is_refused(refusal, saved, content):
    assert "expected tensors by name" in refusal(saved(content))


def test_a_missing_file_is_named(refusal, tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.pth")
    assert "Is a directory" in refusal(tmp_path)

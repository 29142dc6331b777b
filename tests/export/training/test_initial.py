import pytest
import torch
from iog.bundle import DEFAULT_BUNDLE, Bundle
from iog.errors import BundleError
from iog_export.checkpoint import CheckpointError
from iog_export.networks import IOG, NetworkSpec
from iog_export.training.initial import Initial
from iog_export.training.snapshot import Snapshot

SPEC = NetworkSpec("resnet18", width=8)


def test_a_bundle_is_found_by_its_directory_and_by_its_name():
    by_directory, by_name = Initial.read(str(DEFAULT_BUNDLE)), Initial.read("default")
    assert by_directory.network.spec == by_name.network.spec == NetworkSpec("resnet30", width=96, normalize=True)
    assert (by_directory.size, by_directory.folded) == (Bundle.open(DEFAULT_BUNDLE).guidance.size, True)
    assert by_directory.source == by_name.source
    assert by_directory.source.startswith("bundle default, sha256 ")


def test_a_checkpoint_of_ours_brings_its_network_and_its_size(geometry, tmp_path):
    spec = NetworkSpec("resnet18", width=8, normalize=True)
    weights = IOG(spec).state_dict()
    Snapshot(spec, geometry, weights).write(tmp_path / "final.pt")
    found = Initial.read(str(tmp_path / "final.pt"))
    assert (found.network.spec, found.size, found.folded) == (spec, 64, False)
    assert found.source.startswith("final.pt, sha256 ")
    assert all(torch.equal(value, weights[name]) for name, value in found.network.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"spec": {"depth": 3}}, "depth: unknown to this version of iog, which expects backbone, refine, width"),
        ({"spec": {"backbone": "vgg"}}, "backbone 'vgg' is unknown; choose one of"),
        ({"crop": {"size": "large"}}, "size"),
    ],
)
def test_settings_that_this_version_does_not_know_are_refused(tmp_path, settings, problem):
    contents = {"state_dict": IOG(SPEC).state_dict(), "spec": {"backbone": "resnet18", "width": 8}, **settings}
    torch.save(contents, tmp_path / "final.pt")
    with pytest.raises(CheckpointError, match=rf"final\.pt has settings of its own, which are not usable: .*{problem}"):
        Initial.read(str(tmp_path / "final.pt"))


def test_a_published_checkpoint_is_recognised(tmp_path):
    torch.save({"state_dict": IOG(SPEC).state_dict()}, tmp_path / "IOG.pth")
    found = Initial.read(str(tmp_path / "IOG.pth"))
    assert (found.network.spec, found.size, found.folded) == (SPEC, None, False)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (IOG(NetworkSpec("resnet18", refine=False, width=8)).state_dict(), "without refinement branch"),
        (torch.nn.Linear(2, 2).state_dict(), r"tensors missing .*2 tensors unknown \(weight, bias\).*not an IOG"),
        ({k: v for k, v in IOG(SPEC).state_dict().items() if "laterals.2" not in k}, "5 tensors missing .*incomplete"),
    ],
)
def test_other_checkpoints_are_refused_with_the_differences(tmp_path, weights, problem):
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=problem):
        Initial.read(str(tmp_path / "other.pth"))


def test_what_is_not_there_is_refused():
    with pytest.raises(BundleError, match=r"'nothing' is neither a bundle directory nor a packaged model \(default"):
        Initial.read("nothing")

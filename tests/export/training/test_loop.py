import multiprocessing
import os
import signal
from dataclasses import replace
from itertools import count, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from iog_export.datasets import DataSet
from iog_export.datasets.folders import Folders
from iog_export.networks import IOG, NetworkSpec
from iog_export.networks.resnet import ARCHITECTURES, Architecture, BasicBlock
from iog_export.segmenter import torch_segmenter
from iog_export.training import norms
from iog_export.training.initial import Initial
from iog_export.training.interrupt import stop_asked
from iog_export.training.loop import Diverged, Starved, Stopped, Trainer
from iog_export.training.machine import Machine
from iog_export.training.plan import CLICKS_FROM_TRAINED, Plan
from iog_export.training.samples import Batch, Batches, Geometry, Stage
from iog_export.training.snapshot import Snapshot, SnapshotError
from iog_export.training.validation import summarize

# In Python 3.12 and above: the loading process shares the photographs' memory.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

SPEC = NetworkSpec("resnet18", refine=True, width=8, normalize=True)


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block a layer: half the weights, and all that a training consists of."""
    monkeypatch.setitem(ARCHITECTURES, "resnet18", Architecture(BasicBlock, (1, 1, 1, 1)))


@pytest.fixture
def plan(geometry: Geometry) -> Plan:
    stages = ((0.0, Stage(64, 2, 1.0)),)
    return Plan(
        SPEC,
        geometry,
        minutes=1,
        stages=stages,
        learning_rate=2e-3,
        average=0.9,
        warm_up=0.0,
        norm_crops=4,
        provenance={"data": {"cups": 2}},
    )


def batches(data, geometry: Geometry, size: int, number: int) -> list[Batch]:
    return list(islice(Batches(data, geometry, [Stage(64, size, 1.0)], torch.tensor(0), seed=(0,)), number))


def twenty_seconds_a_step():
    """A clock that is looked at once a step, three times a minute."""
    return count(0.0, 20.0).__next__


class Watcher:
    """A monitor that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.sizes: list[int] = []
        self.validations: list[tuple[int, tuple[int, ...]]] = []

    def stepped(self, status):
        self.steps.append(status.steps)
        self.sizes.append(status.size)

    def validated(self, status, figures, pictures):
        self.validations.append((figures["shapes"].objects, pictures.shape))


def test_training_lowers_the_loss_and_raises_the_iou(plan: Plan, shapes_data, geometry, tmp_path):
    trainer = Trainer(plan, tmp_path)
    losses = []
    for batch in batches(shapes_data, geometry, 8, 24):
        losses.append(trainer.step([batch]))
        trainer.seconds += 1.5  # correction clicks come in
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    segment = torch_segmenter(trainer.averaged, geometry.crop, geometry.guidance)
    some = shapes_data.only(shapes_data.items[:4])
    trained = summarize(segment, some)["shapes"].iou
    untrained = torch_segmenter(Trainer(plan, tmp_path).averaged, geometry.crop, geometry.guidance)
    before = summarize(untrained, some)["shapes"].iou
    assert trained[3] > max(before[3] + 0.2, 0.6)


def test_a_killed_training_goes_on_where_it_was(plan: Plan, shapes_data, tmp_path):
    plan = replace(plan, save_every_s=0.0)

    class Killed(Exception):
        pass

    class Fragile(Trainer):
        def step(self, batches):
            if self.steps == 2:
                raise Killed
            return super().step(batches)

    with pytest.raises(Killed):
        Fragile(plan, tmp_path, clock=twenty_seconds_a_step()).run(shapes_data)
    trainer = Trainer(plan, tmp_path, clock=twenty_seconds_a_step()).resumed(tmp_path / "last.pt")
    assert (trainer.steps, trainer.passes, trainer.seconds) == (2, 4, 40.0)
    watcher = Watcher()
    final = trainer.run(shapes_data, monitors=[watcher])
    assert (trainer.steps, trainer.passes, trainer.progress) == (3, 6, 1.0)
    assert watcher.steps == [3]
    assert final.provenance["passes"] == 6
    loaded = Snapshot.read(tmp_path / "final.pt")
    assert (loaded.spec, loaded.geometry, loaded.resume) == (SPEC, plan.geometry, None)
    assert all(torch.equal(loaded.weights[k], v) for k, v in final.weights.items())
    assert not loaded.network().training
    with pytest.raises(SnapshotError, match="end of a training"):
        Trainer(plan, tmp_path).resumed(tmp_path / "final.pt")


def test_a_resumed_training_gives_what_an_unbroken_one_gives(plan: Plan, shapes_data, geometry, tmp_path):
    plan = replace(plan, clicks=CLICKS_FROM_TRAINED)
    given = batches(shapes_data, geometry, 2, 3)

    def steps(trainer: Trainer, some: list[Batch]) -> Trainer:
        for batch in some:
            trainer.step([batch])
            trainer.seconds += 20
        return trainer

    unbroken = steps(Trainer(plan, tmp_path), given)
    steps(Trainer(plan, tmp_path), given[:1]).snapshot().write(tmp_path / "last.pt")
    resumed = steps(Trainer(replace(plan, validate_every_s=1), tmp_path).resumed(tmp_path / "last.pt"), given[1:])
    for one, other in ((unbroken.network, resumed.network), (unbroken.averaged, resumed.averaged)):
        expected = one.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


class StatisticsWatcher(Watcher):
    """Remembers the statistics of a trainer's first batch norm after every step, and stops at one."""

    class Stop(Exception):
        pass

    def __init__(self, trainer: Trainer, last: int | None = None) -> None:
        super().__init__()
        self.trainer = trainer
        self.last = last
        self.means: list[torch.Tensor] = []

    def stepped(self, status):
        super().stepped(status)
        self.means.append(self.trainer.network.backbone.bn1.running_mean.clone())
        if status.steps == self.last:
            raise self.Stop


def test_late_in_a_training_batch_norms_keep_the_statistics_of_the_deployed_network(plan, shapes_data, tmp_path):
    plan = replace(plan, minutes=2, settled=0.5, save_every_s=0.0)
    trainer = Trainer(plan, tmp_path / "unbroken", clock=twenty_seconds_a_step())
    watcher = StatisticsWatcher(trainer)
    final = trainer.run(shapes_data, monitors=[watcher])
    assert watcher.steps == [1, 2, 3, 4, 5, 6]
    assert [torch.equal(one, other) for one, other in pairwise(watcher.means)] == [False, False, False, True, True]
    assert torch.equal(final.weights["backbone.bn1.running_mean"], watcher.means[-1])

    killed = Trainer(plan, tmp_path / "killed", clock=twenty_seconds_a_step())
    watcher = StatisticsWatcher(killed, last=5)
    with pytest.raises(watcher.Stop):
        killed.run(shapes_data, monitors=[watcher])
    resumed = Trainer(plan, tmp_path, clock=twenty_seconds_a_step()).resumed(tmp_path / "killed" / "last.pt")
    final = resumed.run(shapes_data)
    assert resumed.steps == 6
    assert torch.equal(final.weights["backbone.bn1.running_mean"], watcher.means[-1])


def test_a_network_that_is_only_polished_keeps_its_batch_norms_from_the_first_step(
    plan, shapes_data, tmp_path, monkeypatch
):
    plan = replace(plan, settled=0.0, stages=((0.0, Stage(32, 2, 1.0)), (0.6, Stage(64, 2, 0.5))))
    measured: list[int] = []
    reestimate = norms.reestimate

    def counted(clicking, batches, seed):
        batches = list(batches)
        measured.extend(len(batch.inputs) for batch in batches)
        reestimate(clicking, batches, seed)

    monkeypatch.setattr(norms, "reestimate", counted)
    trainer = Trainer(plan, tmp_path, clock=twenty_seconds_a_step())
    watcher = StatisticsWatcher(trainer)
    trainer.run(shapes_data, monitors=[watcher])
    assert watcher.sizes == [64, 64, 64]
    assert measured == [2, 2]  # of two batches, norm_crops, whatever was trained before
    assert all(torch.equal(mean, watcher.means[0]) for mean in watcher.means)


def test_late_in_a_training_the_averaged_network_is_trained(plan, shapes_data, tmp_path, monkeypatch):
    trainer = Trainer(replace(plan, minutes=2, settled=0.5), tmp_path, clock=twenty_seconds_a_step())
    apart: list[float] = []
    step = trainer.step

    def watched(batches):
        mine, averaged = (torch.cat([p.flatten() for p in n.parameters()]) for n in (trainer.network, trainer.averaged))
        apart.append(float((mine - averaged).detach().abs().sum()))
        return step(batches)

    monkeypatch.setattr(trainer, "step", watched)
    trainer.run(shapes_data)
    assert [distance > 0 for distance in apart] == [False, True, True, False, True, True]


def test_accumulated_batches_make_one_step_of_all_of_them(plan: Plan, shapes_data, geometry, tmp_path):
    first, second = batches(shapes_data, geometry, 2, 2)
    trainers = [Trainer(plan, tmp_path) for _ in range(3)]
    gradients = []
    for trainer, given in zip(trainers, ([first], [second], [first, second]), strict=True):
        trainer.optimizer.step = lambda: None  # type: ignore[method-assign]  # only look
        trainer.plan = replace(plan, clip=1e9)
        trainer.step(given)
        gradients.append(trainer.network.Coarse_net.laterals[0][0].weight.grad)
    assert trainers[2].steps == 1
    assert trainers[2].passes == 4
    torch.testing.assert_close(gradients[2], (gradients[0] + gradients[1]) / 2, rtol=1e-3, atol=1e-6)


def test_gradients_in_half_precision_are_scaled_and_an_overflow_skips_the_step(plan, shapes_data, geometry, tmp_path):
    trainer = Trainer(plan, tmp_path, Machine(arithmetic=torch.float16))
    batch, weight = batches(shapes_data, geometry, 2, 1), trainer.network.backbone.conv1.weight
    trainer.scaler.scale(torch.zeros(()))  # begins to scale
    for scale, moves in ((2.0**40, False), (16.0, True)):
        trainer.scaler.update(scale)
        before = weight.clone()
        assert np.isfinite(trainer.step(batch))
        assert torch.equal(before, weight) != moves
        assert trainer.scaler.get_scale() == (scale if moves else scale / 2)
    trainer.snapshot().write(tmp_path / "last.pt")
    again = Trainer(plan, tmp_path, Machine(arithmetic=torch.float16)).resumed(tmp_path / "last.pt")
    assert again.scaler.state_dict() == trainer.scaler.state_dict()
    other = Trainer(plan, tmp_path, Machine(arithmetic=torch.bfloat16)).resumed(tmp_path / "last.pt")
    other.snapshot().write(tmp_path / "last.pt")
    again = Trainer(plan, tmp_path, Machine(arithmetic=torch.float16)).resumed(tmp_path / "last.pt")
    assert again.steps == trainer.steps


def test_a_gradient_that_is_not_finite_changes_nothing_and_many_end_the_training(plan, shapes_data, geometry, tmp_path):
    trainer = Trainer(plan, tmp_path)
    batch, weight = batches(shapes_data, geometry, 2, 1), trainer.network.backbone.conv1.weight
    trainer.step(batch)
    before, average = weight.clone(), trainer.averaged.backbone.conv1.weight.clone()
    broken = trainer.network.backbone.conv1.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    trainer.step(batch)
    assert torch.equal(weight, before)
    assert torch.equal(trainer.averaged.backbone.conv1.weight, average)
    broken.remove()
    trainer.step(batch)
    assert not torch.equal(weight, before)
    assert all(bool(value.isfinite().all()) for value in trainer.averaged.state_dict().values())
    weight.register_hook(lambda gradient: gradient * float("nan"))
    for _ in range(19):
        trainer.step(batch)
    with pytest.raises(Diverged, match="20 steps in a row had no finite gradient"):
        trainer.step(batch)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"spec": replace(SPEC, width=16)}, "width is 8 there and 16 here"),
        (
            {"learning_rate": 1e-3, "minutes": 2},
            "minutes is 1 there and 2 here; learning_rate is 0.002 there and 0.001",
        ),
        (
            {"stages": ((0.0, Stage(64, 4, 1.0)),)},
            r"stages is \[\[0.0, 64, 2, 1.0\]\] there and \[\[0.0, 64, 4, 1.0\]\] here",
        ),
        ({"provenance": {"data": {"cups": 3}}}, "data is {'cups': 2} there and {'cups': 3} here"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_with_the_differences(plan: Plan, tmp_path, change, problem):
    Snapshot(SPEC, plan.geometry, IOG(SPEC).state_dict(), plan.provenance, {"settings": plan.settings}).write(
        tmp_path / "last.pt"
    )
    other = replace(plan, **change)
    with pytest.raises(SnapshotError, match=problem):
        Trainer(other, tmp_path).resumed(tmp_path / "last.pt")


def test_a_checkpoint_that_lacks_what_it_takes_to_go_on_is_refused(plan: Plan, tmp_path):
    Snapshot(SPEC, plan.geometry, {}, resume={}).write(tmp_path / "last.pt")
    with pytest.raises(SnapshotError, match="holds no training to go on with: 'network'"):
        Trainer(plan, tmp_path).resumed(tmp_path / "last.pt")


def test_the_user_stops_it_with_a_checkpoint_and_it_says_how_to_go_on(plan: Plan, shapes_data, tmp_path):
    class Interrupter(Watcher):
        def stepped(self, status):
            super().stepped(status)
            if status.steps == 1:
                signal.raise_signal(signal.SIGINT)

    trainer = Trainer(plan, tmp_path, clock=twenty_seconds_a_step())
    with stop_asked() as stop, pytest.raises(Stopped, match=r"after 0.7 of 1 minutes; .*last\.pt holds.*--resume"):
        trainer.run(shapes_data, monitors=[Interrupter()], stop=stop)
    assert Trainer(plan, tmp_path).resumed(tmp_path / "last.pt").steps == 2
    assert not (tmp_path / "final.pt").exists()
    with pytest.raises(KeyboardInterrupt):  # afterwards, as ever
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_does_not_wait_for_the_step():
    with stop_asked() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_photographs_that_are_gone_end_it_with_a_checkpoint(plan: Plan, shapes, tmp_path):
    root, names = shapes
    data = DataSet.open(Folders(root, names))

    class Remover(Watcher):
        def stepped(self, status):
            super().stepped(status)
            for path in (root / "shapes" / "images").iterdir():
                path.unlink()

    trainer = Trainer(replace(plan, minutes=100), tmp_path, clock=twenty_seconds_a_step())
    with pytest.raises(Starved, match=r"no batch can be prepared: .*DataError.*last\.pt holds.*--resume") as raised:
        trainer.run(data, monitors=[Remover()])
    assert "\n" not in str(raised.value)
    assert Trainer(replace(plan, minutes=100), tmp_path).resumed(tmp_path / "last.pt").steps == trainer.steps >= 1
    with pytest.raises(Starved, match="nothing was trained yet"):
        Trainer(plan, tmp_path / "other", Machine(workers=0)).run(data)
    assert not (tmp_path / "other").exists()


def test_a_killed_worker_ends_it_between_steps_with_a_checkpoint(plan: Plan, shapes_data, tmp_path):
    class Killer(Watcher):
        def stepped(self, status):
            super().stepped(status)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)

    watcher = Killer()
    trainer = Trainer(replace(plan, minutes=100), tmp_path, clock=twenty_seconds_a_step())
    with pytest.raises(Starved, match=r"DataLoader worker .*; .*last\.pt holds the training: go on with --resume"):
        trainer.run(shapes_data, monitors=[watcher])
    assert Trainer(replace(plan, minutes=100), tmp_path).resumed(tmp_path / "last.pt").steps == watcher.steps[-1]


def test_a_full_disk_ends_it_and_leaves_the_last_checkpoint(plan: Plan, shapes_data, tmp_path, monkeypatch):
    plan = replace(plan, save_every_s=0.0)

    class Filler(Watcher):
        def stepped(self, status):
            super().stepped(status)
            if status.steps == 2:

                def full(*arguments: object) -> None:
                    raise OSError(28, "No space left on device")

                monkeypatch.setattr(torch, "save", full)

    with pytest.raises(SnapshotError, match=r"last\.pt cannot be written: No space left on device; the one of"):
        Trainer(plan, tmp_path, clock=twenty_seconds_a_step()).run(shapes_data, monitors=[Filler()])
    assert [path.name for path in tmp_path.glob("*.p*")] == ["last.pt"]
    assert Trainer(plan, tmp_path).resumed(tmp_path / "last.pt").steps == 1


def test_validations_are_shown_with_pictures_and_kept_in_the_history(plan: Plan, shapes_data, tmp_path):
    plan = replace(plan, validate_every_s=20.0, stages=((0.0, Stage(64, 2, 1.0)), (0.5, Stage(96, 2, 1.0))))
    watcher = Watcher()
    trainer = Trainer(plan, tmp_path, Machine(workers=0), clock=twenty_seconds_a_step())
    trainer.run(shapes_data, shapes_data.only(shapes_data.items[:2]), [watcher])
    assert [objects for objects, _ in watcher.validations] == [2, 2, 2]
    assert watcher.validations[0][1] == (2 * 64, 3 * 64, 3)
    assert set(watcher.sizes) == {64, 96}
    assert [entry["size"] for entry in trainer.history] == [64, 96, 96]
    assert list(trainer.history[0]["shapes"]["iou"]) == [3, 4, 5]


def test_validations_take_nothing_of_the_time_to_train_however_long_they_are(plan: Plan, shapes_data, tmp_path):
    now = 0.0

    class Timed(Trainer):
        def step(self, batches):
            nonlocal now
            now += 10
            return super().step(batches)

    class Slow(Watcher):
        def validated(self, *shown):
            nonlocal now
            now += 1000
            super().validated(*shown)

    watcher = Slow()
    trainer = Timed(replace(plan, validate_every_s=20.0), tmp_path, clock=lambda: now)
    trainer.run(shapes_data, shapes_data.only(shapes_data.items[:1]), [watcher])
    assert (watcher.steps, trainer.seconds) == ([1, 2, 3, 4, 5, 6], 60)
    assert len(watcher.validations) == 3


def test_photographs_that_are_gone_at_the_end_leave_a_checkpoint_with_the_statistics_it_had(plan, shapes, tmp_path):
    root, names = shapes
    before = {}

    class Remover(Watcher):
        def stepped(self, status):
            if status.steps == 3:
                before.update({name: value.clone() for name, value in trainer.averaged.state_dict().items()})
                for path in (root / "shapes" / "images").iterdir():
                    path.unlink()

    trainer = Trainer(plan, tmp_path, clock=twenty_seconds_a_step())
    with pytest.raises(Starved, match=r"last\.pt holds the training"):
        trainer.run(DataSet.open(Folders(root, names)), monitors=[Remover()])
    weights = Snapshot.read(tmp_path / "last.pt").weights
    assert all(torch.equal(value, before[name]) for name, value in weights.items())


def test_another_number_of_processes_is_another_training(plan: Plan, tmp_path):
    last = tmp_path / "last.pt"
    two = Trainer(plan, tmp_path, Machine(processes=2, rank=1))
    Trainer(plan, tmp_path).snapshot().write(last)
    with pytest.raises(SnapshotError, match="processes is 1 there and 2 here"):
        two.resumed(last)
    contents = torch.load(last, weights_only=True)
    assert contents["provenance"].pop("processes") == contents["resume"]["settings"].pop("processes") == 1
    torch.save(contents, last)  # as it was before checkpoints told
    assert two.resumed(last).steps == 0


def test_the_end_measures_batch_norms_on_what_is_deployed(plan: Plan, shapes_data, tmp_path, monkeypatch):
    plan = replace(plan, stages=((0.0, Stage(96, 2, 0.25)),))
    trainer = Trainer(plan, tmp_path, clock=twenty_seconds_a_step())
    lagging, seen = {}, []

    def watched(data, geometry, stages, current, seed):
        seen.append(list(stages))
        return Batches(data, geometry, stages, current, seed)

    monkeypatch.setattr("iog_export.training.loop.Batches", watched)

    class Last(Watcher):
        def stepped(self, status):
            lagging.update({k: v.clone() for k, v in trainer.averaged.state_dict().items()})

    final = trainer.run(shapes_data, monitors=[Last()])
    changed = {name for name, value in final.weights.items() if not torch.equal(value, lagging[name])}
    assert "backbone.bn1.running_mean" in changed
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for name in changed)
    assert seen[-1] == [Stage(64, 2, 0.25)]


@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("folded", [True, False])
def test_a_training_can_start_from_a_trained_network(plan: Plan, shapes_data, geometry, tmp_path, folded, width):
    network = IOG(SPEC).eval()
    plan = replace(plan, spec=replace(SPEC, width=width))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer = Trainer(plan, tmp_path).started_from(Initial(network, "some.pt", 64, folded), shapes_data)
    inputs = batches(shapes_data, geometry, 2, 1)[0].inputs.float()
    with torch.no_grad():
        expected = network(inputs).logits
        for started in (trainer.network.eval(), trainer.averaged):
            torch.testing.assert_close(started(inputs).logits, expected, rtol=1e-3, atol=1e-3)
    mean = "backbone.bn1.running_mean"
    assert torch.equal(trainer.network.state_dict()[mean], before[mean]) != folded
    neighbour = Trainer(plan, tmp_path, Machine(processes=2, rank=1)).started_from(
        Initial(network, "some.pt", 64, folded), shapes_data
    )
    assert torch.equal(neighbour.averaged.state_dict()[mean], trainer.averaged.state_dict()[mean])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(SnapshotError, match=r"some\.pt is another network: width is 8 there and 6 here"):
        Trainer(replace(plan, spec=replace(SPEC, width=6)), Path()).started_from(
            Initial(network, "some.pt", 64, folded), shapes_data
        )

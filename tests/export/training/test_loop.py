from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from iog_export.networks import NetworkSpec
from iog_export.training.data import DataSet
from iog_export.training.evaluation import Protocol, evaluate, summarize, torch_segmenter
from iog_export.training.loop import Plan, Trainer, add_corrections
from iog_export.training.samples import Batches, Geometry, Stage
from iog_export.training.snapshot import Snapshot, SnapshotError

# In Python 3.12 and above: the loading process shares the photographs' memory.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

SPEC = NetworkSpec("resnet18", refine=True, width=8, normalize=True)


@pytest.fixture
def plan(geometry: Geometry) -> Plan:
    stages = ((0.0, Stage(64, 8)),)
    return Plan(SPEC, geometry, minutes=1, stages=stages, learning_rate=2e-3, average=0.9, warm_up=0.0)


@pytest.fixture
def targets(shapes):
    return DataSet.read(*shapes).targets


def test_rate_rises_then_falls_to_nothing(plan: Plan):
    plan = replace(plan, warm_up=0.1)
    rates = [plan.rate(p) for p in (0.0, 0.05, 0.1, 0.5, 1.0, 1.5)]
    assert rates[0] < rates[1] < rates[2] == plan.learning_rate
    assert rates[2] > rates[3] > rates[4] == rates[5] == pytest.approx(plan.learning_rate / 1000)


def test_stages_and_clicks_follow_the_time(plan: Plan):
    plan = replace(plan, stages=((0.0, Stage(64, 2)), (0.5, Stage(96, 1))), clicks_from=0.2)
    assert [plan.stage(p) for p in (0.0, 0.49, 0.5, 1.2)] == [0, 0, 1, 1]
    rng = np.random.default_rng(0)
    early, middle, late = ({plan.corrections(p, rng) for _ in range(200)} for p in (0.1, 0.3, 0.9))
    assert early == {0}
    assert middle == {0, 1}
    assert late == {0, 1, 2, 3, 4}


def test_training_lowers_the_loss_and_raises_the_iou(plan: Plan, targets, geometry, tmp_path):
    trainer = Trainer(plan, tmp_path)
    batches = iter(Batches(targets, geometry, [Stage(64, 8)], torch.tensor(0), seed=0))
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(20):
        losses.append(trainer.step(next(batches), rng))
        trainer.seconds += 1.5  # correction clicks come in
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    segment = torch_segmenter(trainer.averaged, geometry.crop, geometry.guidance)
    trained = summarize(evaluate(segment, targets, Protocol(clicks=4)))["shapes"].mean_iou
    untrained = torch_segmenter(Trainer(plan, tmp_path).averaged, geometry.crop, geometry.guidance)
    before = summarize(evaluate(untrained, targets, Protocol(clicks=3)))["shapes"].mean_iou
    assert trained[0] > max(before[0] + 0.2, 0.6)


def test_correction_is_drawn_where_the_mask_is_wrong(plan: Plan, targets, geometry, tmp_path):
    batch = next(iter(Batches(targets, geometry, [Stage(64, 4)], torch.tensor(0), seed=0)))
    network = Trainer(plan, tmp_path).network.eval()
    with torch.no_grad():
        outputs = network(batch.inputs.float())
    nothing = outputs._replace(logits=torch.full_like(outputs.logits, -1.0))
    clicks = batch.inputs[:, 3:].numpy().copy()
    add_corrections(clicks, nothing, batch, geometry.guidance, np.random.default_rng(0))
    before = batch.inputs[:, 3:].numpy()
    assert (clicks[:, 1] == before[:, 1]).all()
    for heat, old, target in zip(clicks[:, 0], before[:, 0], batch.target[:, 0].numpy(), strict=True):
        new = (heat == 255) & (old < 255)
        assert (new.sum(), target[new].all()) in {(1, True), (0, True)}
    assert (clicks[:, 0] != before[:, 0]).any()


def test_killed_training_goes_on_where_it_was(plan: Plan, targets, tmp_path):
    plan = replace(plan, save_every_s=0.0, stages=((0.0, Stage(64, 2)),))

    class Killed(Exception):
        pass

    class Fragile(Trainer):
        def step(self, batch, rng):
            if self.steps == 3:
                raise Killed
            return super().step(batch, rng)

    def ten_seconds_a_step():
        return count(0.0, 10.0).__next__

    with pytest.raises(Killed):
        Fragile(plan, tmp_path, ten_seconds_a_step()).run(targets)
    trainer = Trainer(plan, tmp_path, ten_seconds_a_step()).resumed(tmp_path / "last.pt")
    assert (trainer.steps, trainer.passes, trainer.progress) == (3, 6, 0.5)
    lines: list[str] = []
    final = trainer.run(targets, report=lines.append)
    assert (trainer.steps, trainer.passes, trainer.progress) == (6, 12, 1.0)
    assert "loss" in lines[-1]
    assert final.provenance["passes"] == 12
    loaded = Snapshot.read(tmp_path / "final.pt")
    assert (loaded.spec, loaded.geometry, loaded.resume) == (SPEC, plan.geometry, None)
    assert all(torch.equal(loaded.weights[k], v) for k, v in final.weights.items())
    assert not loaded.network().training
    with pytest.raises(SnapshotError, match="end of a training"):
        Trainer(plan, tmp_path).resumed(tmp_path / "final.pt")


def test_checkpoint_of_another_architecture_is_refused(plan: Plan, tmp_path):
    Trainer(plan, tmp_path).snapshot().write(tmp_path / "last.pt")
    wider = replace(plan, spec=replace(SPEC, width=16))
    with pytest.raises(SnapshotError, match=r"width=8.*width=16"):
        Trainer(wider, tmp_path).resumed(tmp_path / "last.pt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_other_files_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "last.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SnapshotError, match=r"last\.pt"):
        Snapshot.read(path)


def test_validation_is_kept_in_the_history(plan: Plan, targets, tmp_path):
    trainer = Trainer(plan, tmp_path)
    summaries = trainer.validate(targets[:2])
    assert summaries["shapes"].objects == 2
    assert trainer.history[0]["size"] == 64
    assert len(trainer.history[0]["shapes"]["mean_iou"]) == 3

import io
import logging

import numpy as np
import pytest
import torch
from iog_export.evaluation.figures import Figures
from iog_export.networks import IOG, NetworkSpec
from iog_export.training.board import TensorBoard
from iog_export.training.monitor import LogLines, ProgressBar, Status
from iog_export.training.pictures import pictures
from iog_export.training.samples import Batches, Stage
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FIGURES = {
    "shapes": Figures(
        objects=2,
        failed=0,
        iou={3: 0.75, 4: 0.8, 5: 0.85},
        standard_error={},
        boundary_iou={},
        below_half={3: 0.5, 4: 0.0, 5: 0.0},
        clicks_to={},
        not_reached={},
    )
}
PICTURES = np.zeros((8, 24, 3), np.uint8)


def status(seconds: float, loss: float) -> Status:
    return Status(
        seconds=seconds,
        total_seconds=120.0,
        steps=int(seconds),
        passes=int(10 * seconds),
        passes_per_s=10.0,
        size=64,
        learning_rate=1e-3,
        loss=loss,
    )


def test_the_log_has_a_line_every_half_minute_and_one_for_each_validation(caplog):
    lines = LogLines()
    with caplog.at_level(logging.INFO):
        for second in range(0, 61, 10):
            lines.stepped(status(second, second / 10))
        lines.validated(status(61, 1), FIGURES, PICTURES)
    assert caplog.messages == [
        "0.5/2 min, 300 passes, 64 px: loss 1.5000, 10 passes/s",  # of 0, 10, 20 and 30
        "1.0/2 min, 600 passes, 64 px: loss 5.0000, 10 passes/s",
        "1.0/2 min, 610 passes, 64 px: IoU after 3, 4, 5 clicks: shapes 0.750 0.800 0.850",
    ]


def test_the_bar_shows_time_speed_loss_stage_and_the_last_validation():
    console = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    with ProgressBar(console) as bar:
        bar.stepped(status(30, 0.5))
        bar.validated(status(30, 0.5), FIGURES, PICTURES)
        bar.stepped(status(60, 0.25))
        bar._progress.refresh()
    shown = console.file.getvalue()
    assert "1.0/2 min, 600 passes, 64 px: loss 0.375, 10 passes/s, IoU 0.750 0.800 0.850" in shown


def test_tensorboard_reads_back_scalars_and_pictures(tmp_path):
    with TensorBoard(tmp_path / "tensorboard", every_s=10) as board:
        for second in range(0, 31, 5):
            board.stepped(status(second, second / 5))
        board.validated(status(30, 1), FIGURES, PICTURES)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("training/loss")] == [(100, 1.0), (200, 3.5), (300, 5.5)]
    assert events.Scalars("training/learning_rate")[0].value == pytest.approx(1e-3)
    assert events.Scalars("training/passes_per_second")[-1].value == 10
    assert events.Scalars("training/size")[-1].value == 64
    assert events.Scalars("iou_after_4_clicks/shapes")[0].value == pytest.approx(0.8)
    assert events.Scalars("below_half_after_3_clicks/shapes")[0].value == 0.5
    (image,) = events.Images("crop_mask_truth")
    assert (image.step, image.height, image.width) == (300, 8, 24)


def test_a_full_disk_ends_the_curves_and_not_the_training(tmp_path, caplog, monkeypatch):
    with TensorBoard(tmp_path, every_s=0) as board:

        def full(*arguments: object, **options: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(board._writer, "add_scalar", full)
        board.stepped(status(1, 1.0))
        board.stepped(status(2, 1.0))
        board.validated(status(2, 1.0), FIGURES, PICTURES)
    assert caplog.messages == [f"{tmp_path} cannot be written, and gets no more: No space left on device"]


def test_pictures_show_clicks_on_the_crop_then_mask_then_truth(shapes_data, geometry):
    batch = next(iter(Batches(shapes_data, geometry, [Stage(64, 5, 1.0)], torch.tensor(0), seed=(0,))))
    network = IOG(NetworkSpec("resnet18", width=8, normalize=True)).eval()
    shown = pictures(network, batch)
    assert shown.shape == (4 * 64, 3 * 64, 3)
    crop, mask, truth = shown[:64, :64], shown[:64, 64:128], shown[:64, 128:]
    foreground, background = batch.inputs[0, 3].numpy(), batch.inputs[0, 4].numpy()
    assert (crop[foreground == 255] == (0, 255, 0)).all()
    assert (crop[(background == 255) & (foreground == 0)] == (255, 0, 0)).all()
    untouched = (foreground == 0) & (background == 0)
    np.testing.assert_array_equal(crop[untouched], batch.inputs[0, :3].numpy().transpose(1, 2, 0)[untouched])
    np.testing.assert_array_equal(truth[:, :, 1], 255 * batch.target[0, 0].numpy())
    assert (mask[:, :, 0] == mask[:, :, 2]).all()

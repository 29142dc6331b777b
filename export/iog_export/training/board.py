"""A training in TensorBoard: curves of its loss, speed and validation, and pictures of what the network does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from iog.arrays import UInt8Array
from torch.utils.tensorboard import SummaryWriter

from iog_export.evaluation.figures import Figures

from .monitor import Recent, Status

log = logging.getLogger(__name__)


class TensorBoard:
    """A `Monitor` that writes event files into a directory. Use it in a `with` statement.

    A full disk ends the curves, not the training. x axes count passes, which a busy machine makes fewer of.
    """

    def __init__(self, directory: Path, every_s: float = 10.0) -> None:
        self._directory = directory
        self._writer: SummaryWriter | None = SummaryWriter(str(directory))
        self._losses = Recent(every_s)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def stepped(self, status: Status) -> None:
        """Loss, speed, learning rate and stage, every few seconds."""
        if (loss := self._losses.add(status.seconds, status.loss)) is None:
            return
        self._write(
            status,
            {
                "training/loss": loss,
                "training/learning_rate": status.learning_rate,
                "training/size": status.size,
                "training/passes_per_second": status.passes_per_s,
            },
        )

    def validated(self, status: Status, figures: Mapping[str, Figures], pictures: UInt8Array) -> None:
        """Mean IoU and the share of failures by data set and number of clicks; the pictures."""
        scalars: dict[str, float] = {}
        for name, each in figures.items():
            scalars |= {f"iou_after_{clicks}_clicks/{name}": value for clicks, value in each.iou.items()}
            scalars |= {f"below_half_after_{clicks}_clicks/{name}": v for clicks, v in each.below_half.items()}
        self._write(status, scalars, pictures)

    def _write(self, status: Status, scalars: Mapping[str, float], pictures: UInt8Array | None = None) -> None:
        if self._writer is None:
            return
        try:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, status.passes)
            if pictures is not None:
                self._writer.add_image("crop_mask_truth", pictures, status.passes, dataformats="HWC")
            self._writer.flush()
        except OSError as e:
            log.warning("%s cannot be written, and gets no more: %s", self._directory, e.strerror or e)
            self._writer = None

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

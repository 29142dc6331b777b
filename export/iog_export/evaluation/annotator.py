"""The simulated annotator's hand."""

from iog_export.training.annotator import correction, inside_point, loosened, tight_box

__all__ = ["correction", "inside_point", "loosened", "tight_box"]

"""Photographs with object masks."""

from iog_export.training.data import DataError, Photograph, Target, read_list, read_photograph
from iog_export.training.data import _targets as targets_of

__all__ = ["DataError", "Photograph", "Target", "read_list", "read_photograph", "targets_of"]

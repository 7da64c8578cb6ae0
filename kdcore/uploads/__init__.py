"""Data sets that users bring: read by well-kept libraries, checked once, and prepared for training."""

from kdcore.uploads.check import check_dataset
from kdcore.uploads.options import DatasetOptions
from kdcore.uploads.profile import DatasetProfile

__all__ = ["DatasetOptions", "DatasetProfile", "check_dataset"]

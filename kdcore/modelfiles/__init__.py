"""Models that somebody brings as files: what they are by their content, whether they fit, and what they hold."""

from kdcore.modelfiles.check import check_model
from kdcore.modelfiles.formats import ModelFileError
from kdcore.modelfiles.profile import ModelOptions, ModelProfile
from kdcore.modelfiles.reading import reading_fault

__all__ = ["ModelFileError", "ModelOptions", "ModelProfile", "check_model", "reading_fault"]

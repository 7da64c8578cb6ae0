"""Pictures in folders, one folder for each class: the layout that torchvision's ImageFolder reads."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field, StringConstraints

from kdcore.data.base import BaseDataConfig, Count, DataError, DataFacts, Dataset, Split, assemble, split_facts

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
FolderName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^/\\\x00.][^/\\\x00]*$")]
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
"""Pillow's, for a picture of so many pixels that it is taken for an attack."""
COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = ((0.449,), (0.226,))


class ImageFolderConfig(BaseDataConfig):
    """Pictures of your own, in `<folder>/train/<class>/…` and `<folder>/test/<class>/…` of the data directory.

    Each is turned as its camera says, made so small that its shorter side is `size`, and cut to the square in its
    middle. Read once into memory, 3 bytes a pixel. Normalised with ImageNet's mean and deviation, as published weights
    want it. The plan, which reads no file, counts with `train_pictures` and `test_pictures`.
    """

    title: ClassVar[str] = "Pictures in folders"
    source: ClassVar[str] = "your own; mean and deviation: torchvision's transforms for ImageNet"

    type: Literal["image_folder"] = "image_folder"
    folder: FolderName
    """Of the data directory; holds `train` and `test`."""
    classes: list[FolderName] = Field(min_length=2, max_length=10_000)
    """Names of the classes' folders, in the order of the outputs."""
    size: int = Field(default=64, ge=8, le=1024)
    """Pixels a side that the models read."""
    grey: bool = False
    """One channel of brightness instead of three of colour."""
    train_pictures: Count
    """How many there are to train on, validation included: what the plan counts with."""
    test_pictures: Count
    """How many there are to test with."""

    def facts(self) -> DataFacts:
        mean, std = GREY if self.grey else COLOUR
        if len(set(self.classes)) < len(self.classes):
            raise DataError("two classes have one name; each has a folder of its own", "classes")
        known = DataFacts(
            input_shape=(len(mean), self.size, self.size),
            classes=tuple(self.classes),
            train=self.train_pictures,
            validation=0,
            test=self.test_pictures,
            mean=mean,
            std=std,
        )
        return split_facts(self, known, known.train)

    def load(self, root: Path, *, download: bool) -> Dataset:
        training, test = (self._read(root / self.folder / part) for part in ("train", "test"))
        return assemble(self, self.facts(), training, test, scale=255.0)

    def _read(self, folder: Path) -> Split:
        pictures, labels = [], []
        for label, name in enumerate(self.classes):
            found = list(_files(folder / name))
            if not found:
                raise DataError(f"{folder / name} holds no picture ({', '.join(ENDINGS)}); put the class's there")
            pictures += [self._picture(path) for path in found]
            labels += [label] * len(found)
        return Split(torch.stack(pictures), torch.tensor(labels))

    def _picture(self, path: Path) -> torch.Tensor:
        """(C, size, size) uint8."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as opened:
                    turned = ImageOps.exif_transpose(opened).convert("L" if self.grey else "RGB")
                    fitted = ImageOps.fit(turned, (self.size, self.size), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, *BOMBS) as error:
            raise DataError(f"{path} is no picture that can be read ({error}); mend it or take it away") from error
        pixels = np.array(fitted)  # (H, W) or (H, W, 3)
        return torch.from_numpy(pixels).view(self.size, self.size, -1).permute(2, 0, 1).contiguous()


def _files(folder: Path) -> Iterator[Path]:
    """The pictures of a class, its folders' included, by name; links are not followed.

    Raises:
        DataError: the folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{folder} cannot be read ({error}); each class has a folder there") from error

    if folder.is_symlink():
        raise DataError(f"{folder} is a link, and links are not followed; put the folder itself there")
    for place, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if name.lower().endswith(ENDINGS) and not path.is_symlink():
                yield path

"""Pictures in folders, one folder for each class: the layout that torchvision's ImageFolder reads."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, StringConstraints

from kdcore.data.base import Count, DataError, DataFacts, Dataset, PictureDataConfig, Places, Split
from kdcore.data.pictures import ENDINGS, PictureError, fit_picture, pixels, read_picture
from kdcore.data.splits import assemble, split_facts

FolderName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^/\\\x00.][^/\\\x00]*$")]
MORE = 1.1
"""Times as many pictures as the spec says may be there: the plan is an estimate from above by more than that."""
COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = ((0.449,), (0.226,))


class ImageFolderConfig(PictureDataConfig):
    """Pictures of your own, in `<folder>/train/<class>/…` and `<folder>/test/<class>/…` of the data directory.

    Each is turned as its camera says, made so small that its shorter side is `size`, and cut to the square in its
    middle. Read once into memory, 3 bytes a pixel, which may take an hour at most. Normalised with ImageNet's mean and
    deviation, as published weights want it. The plan, which reads no file, counts with `train_pictures` and
    `test_pictures`.
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
            task=self.task,
        )
        return split_facts(self, known, known.train)

    def load(self, places: Places) -> Dataset:
        root = places.root
        training = self._read(root, "train", self.train_pictures)
        return assemble(self, self.facts(), training, self._read(root, "test", self.test_pictures), scale=255.0)

    def _read(self, root: Path, part: str, planned: int) -> Split:
        """The pictures of a split, counted before any is read: the plan's memory is for so many."""
        found: list[tuple[Path, int]] = []
        for label, name in enumerate(self.classes):
            folder = root / self.folder / part / name
            _refuse_links(root, folder)
            pictures = list(_files(folder))
            if not pictures:
                raise DataError(f"{folder} holds no picture ({', '.join(ENDINGS)}); put the class's there")
            found += [(path, label) for path in pictures]
        if len(found) > planned * MORE:
            message = f"{root / self.folder / part} holds {len(found)} pictures, {part}_pictures says {planned}"
            raise DataError(f"{message}; correct it, so that the plan is right", f"{part}_pictures")
        channels = self.facts().input_shape[0]
        inputs = torch.empty(len(found), channels, self.size, self.size, dtype=torch.uint8)
        for place, (path, _) in enumerate(found):
            inputs[place] = self._picture(path)
        return Split(inputs, torch.tensor([label for _, label in found]))

    def _picture(self, path: Path) -> torch.Tensor:
        """(C, size, size) uint8."""
        try:
            return pixels(fit_picture(read_picture(path, grey=self.grey), self.size))
        except PictureError as error:
            raise DataError(f"{path} is no picture that can be read ({error}); mend it or take it away") from error


def _refuse_links(root: Path, folder: Path) -> None:
    """Raise `DataError` if a folder on the way from the data directory is a link."""
    for place in [folder, *folder.parents]:
        if place == root:
            return
        if place.is_symlink():
            raise DataError(f"{place} is a link, and links are not followed; put the folder itself there")


def _files(folder: Path) -> Iterator[Path]:
    """The pictures of a class, its folders' included, by name; links are not followed.

    Raises:
        DataError: the folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{folder} cannot be read ({error}); each class has a folder there") from error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if name.lower().endswith(ENDINGS) and not path.is_symlink():
                yield path

"""Pictures from files: which formats are read, how large one may be, and how one becomes a square of pixels."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
"""Whatever the ending says: Pillow knows others, and hands PostScript to a program."""
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
"""Pillow's, for a picture of so many pixels that it is taken for an attack."""
BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
"""What Pillow's decoders raise for a damaged file."""
Fit = Literal["crop", "resize", "pad"]
Picture = Image.Image


class PictureError(ValueError):
    """A file that is no picture that can be read."""


def read_picture(file: Path | IO[bytes], *, grey: bool) -> Picture:
    """A picture, decoded, turned as its camera says, in grey or in colour.

    Raises:
        PictureError: it is none, is damaged, has more than 8 bits a channel, or more than 89 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:
                if opened.mode.startswith(("I", "F")):  # converted they would be cut off at 255
                    raise PictureError(f"it has more than 8 bits a channel (mode {opened.mode}); save it with 8")
                return ImageOps.exif_transpose(opened).convert("L" if grey else "RGB")
    except PictureError:
        raise
    except (*BROKEN, *BOMBS) as error:
        raise PictureError(str(error) or type(error).__name__) from error


def fit_picture(picture: Picture, size: int, fit: Fit = "crop") -> Picture:
    """A square of `size` pixels a side: the middle (`crop`), the whole distorted (`resize`), or in black (`pad`)."""
    square = (size, size)
    if fit == "resize":
        return picture.resize(square, Image.Resampling.BILINEAR)
    if fit == "pad":
        return ImageOps.pad(picture, square, Image.Resampling.BILINEAR)
    return ImageOps.fit(picture, square, Image.Resampling.BILINEAR)


def pixels(picture: Picture) -> Tensor:
    """(C, H, W) uint8."""
    values = np.array(picture)  # (H, W) or (H, W, 3)
    return torch.from_numpy(values).view(picture.height, picture.width, -1).permute(2, 0, 1).contiguous()

"""A page that shows some samples, the same ones every time: pictures as a sheet, others as rows."""

import heapq
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdcore.data.pictures import Picture, fit_picture
from kdcore.uploads.sample import Sample

TILE, ACROSS, SHOWN = 64, 10, 100
MOST_TEXT, MOST_NUMBERS = 500, 16


class Page:
    """Keeps the samples of the smallest hashes, which is a fair draw that every check repeats."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, int, dict[str, Any], Picture | None]] = []
        self._seen = 0

    def add(self, sample: Sample, key: int, picture: Picture | None) -> None:
        self._seen += 1
        if len(self._kept) == SHOWN and -key <= self._kept[0][0]:
            return
        tile = fit_picture(picture, TILE, "pad") if picture is not None else None
        row = {"name": sample.name[:MOST_TEXT], "split": sample.part, "label": _label(sample.label)}
        if tile is None:
            row |= {"sample": _shown(sample.value)}
        entry = (-key, self._seen, row, tile)
        (heapq.heappushpop if len(self._kept) == SHOWN else heapq.heappush)(self._kept, entry)

    def write(self, out: Path) -> list[str]:
        """`rows.json`, and of pictures `thumbnails.png`, whose tiles are in the order of the rows."""
        out.mkdir(parents=True, exist_ok=True)
        kept = sorted(self._kept, key=lambda entry: entry[1])
        rows = json.dumps([row for _, _, row, _ in kept], indent=1)
        (out / "rows.json").write_text(rows + "\n", encoding="utf-8")
        tiles = [tile for _, _, _, tile in kept if tile is not None]
        if not tiles:
            return ["rows.json"]
        sheet = Image.new("RGB", (ACROSS * TILE, -(-len(tiles) // ACROSS) * TILE))
        for place, tile in enumerate(tiles):
            sheet.paste(tile, (place % ACROSS * TILE, place // ACROSS * TILE))
        sheet.save(out / "thumbnails.png")
        return ["rows.json", "thumbnails.png"]


def _label(label: Any) -> Any:
    if isinstance(label, (list, tuple)):
        return [_label(one) for one in label[:MOST_NUMBERS]]
    return label if label is None or isinstance(label, (int, float)) else str(label)[:200]


def _shown(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "first": [float(each) for each in value.flat[:MOST_NUMBERS]]}
    return str(value)[:MOST_TEXT]

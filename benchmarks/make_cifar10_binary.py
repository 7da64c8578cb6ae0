"""Write CIFAR-10 in its binary version's layout from lossless PNG strips.

A strip is 32 pixels wide and 32,000 high: 1,000 images one below the other. `labels.csv` beside the strips
has one line per image: file,row,split,official_index,label (splits train, val and test; `official_index` counts
within the official training or test set). An image goes to its official place: training images 0 to 9,999 to
data_batch_1.bin, and so on, in order; images that are not there are left out, so a file may hold fewer than
10,000 records of 3,073 bytes, and a batch without any image is not written.

    python benchmarks/make_cifar10_binary.py --source strips --out data

makes `data/cifar-10-batches-bin`. Needs Pillow and numpy.
"""

import argparse
import csv
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = "cifar-10-batches-bin"
SIDE = 32
BATCH = 10_000
COLUMNS = ["file", "row", "split", "official_index", "label"]

Records = dict[str, list[tuple[int, str, int, int]]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the strips and labels.csv")
    parser.add_argument("--out", type=Path, required=True, help="data directory; its sub-folder is made")
    chosen = parser.parse_args(arguments)
    try:
        written = convert(chosen.source, chosen.out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"make_cifar10_binary: {error}") from error
    for name, count in written.items():
        print(f"{chosen.out / FOLDER / name}: {count:,} images")


def convert(source: Path, out: Path) -> dict[str, int]:
    """Write every batch that has images; returns how many each holds.

    Raises:
        ValueError: a line of labels.csv or a strip is not as described.
    """
    records = read_labels(source / "labels.csv")
    strips = {name: read_strip(source / name) for name in sorted({r[1] for rs in records.values() for r in rs})}
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sorted(records.items()):
        for _, strip, row, _ in rows:
            if row >= len(strips[strip]):
                raise ValueError(f"labels.csv names image {row} of {strip}, which has {len(strips[strip])}")
        temporary = folder / f"{name}.part"
        temporary.write_bytes(b"".join(bytes([label]) + strips[strip][row] for _, strip, row, label in sorted(rows)))
        os.replace(temporary, folder / name)
    return {name: len(rows) for name, rows in sorted(records.items())}


def read_labels(path: Path) -> Records:
    """Rows (official index, strip, row, label) by the name of the file they belong to."""
    records: Records = defaultdict(list)
    seen = set()
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, expected {COLUMNS}")
        for line in reader:
            official, row, label = int(line["official_index"]), int(line["row"]), int(line["label"])
            test = line["split"] == "test"
            name = "test_batch.bin" if test else f"data_batch_{official // BATCH + 1}.bin"
            most = BATCH if test else 5 * BATCH
            known = line["split"] in ("train", "val", "test") and 0 <= official < most and 0 <= label <= 9 and row >= 0
            if not known or (name, official) in seen:
                raise ValueError(f"{path}, line {reader.line_num}: {line} is not one image of CIFAR-10, or there twice")
            seen.add((name, official))
            records[name].append((official, line["file"], row, label))
    return records


def read_strip(path: Path) -> list[bytes]:
    """The strip's images, each as 3 x 32 x 32 bytes, red first."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    with Image.open(path) as image:
        if image.mode != "RGB" or image.width != SIDE or image.height % SIDE:
            raise ValueError(
                f"{path} is {image.mode} {image.size}, expected RGB, {SIDE} wide, a multiple of {SIDE} high"
            )
        pixels = np.asarray(image).reshape(-1, SIDE, SIDE, 3)
    return [picture.tobytes() for picture in pixels.transpose(0, 3, 1, 2)]  # (N, H, W, C) -> (N, C, H, W)


if __name__ == "__main__":
    main()

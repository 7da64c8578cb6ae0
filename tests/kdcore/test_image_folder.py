"""Pictures in folders: classes in order, every format, square cuts, and what cannot be read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kdcore.data import DataError, ImageFolderConfig, Places
from kdcore.plan import make_plan
from kdcore.spec import SpecError, parse_spec

RED, GREEN = (200, 0, 0), (0, 200, 0)


def config(**changes: Any) -> ImageFolderConfig:
    values = {"folder": "mine", "classes": ["red", "green"], "size": 8, "train_pictures": 8, "test_pictures": 2}
    return ImageFolderConfig(**values | {"validation": 2} | changes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, count in (("train", 4), ("test", 1)):
        for name, colour in (("red", RED), ("green", GREEN)):
            folder = tmp_path / "mine" / part / name
            (folder / "deeper").mkdir(parents=True)
            for number in range(count):
                ending = (".png", ".bmp", ".ppm", ".JPG")[number]
                Image.new("RGB", (20, 10 + number), colour).save(
                    (folder if number else folder / "deeper") / f"{number}{ending}"
                )
            (folder / "notes.txt").write_text("no picture")
    return tmp_path


def test_classes_are_the_folders_in_the_order_that_is_named(root: Path) -> None:
    data = config().load(Places(root))
    assert (data.facts.train, data.facts.validation, data.facts.test) == (6, 2, 2)
    assert data.test.inputs.shape == (2, 3, 8, 8)
    assert data.test.inputs.dtype == torch.uint8
    for inputs, label in zip(data.test.inputs, data.test.labels, strict=True):
        wanted = torch.tensor((RED, GREEN)[int(label)])
        assert torch.equal(inputs[:, 4, 4].long(), wanted)
    turned = config(classes=["green", "red"]).load(Places(root))
    assert torch.equal(turned.test.inputs[0], data.test.inputs[1])
    assert config(grey=True).load(Places(root)).test.inputs.shape == (2, 1, 8, 8)


def test_the_square_in_the_middle_is_read(root: Path) -> None:
    picture = Image.new("RGB", (32, 8), RED)
    picture.paste(GREEN, (12, 0, 20, 8))
    picture.save(root / "mine/test/red/0.png")
    (root / "mine/test/red/deeper/0.png").unlink()
    data = config().load(Places(root))
    assert torch.equal(data.test.inputs[0], torch.tensor(GREEN, dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8))


def test_a_picture_is_turned_as_its_camera_says(root: Path) -> None:
    picture = Image.new("RGB", (8, 8), RED)
    picture.paste(GREEN, (0, 0, 8, 4))  # green above red
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(root / "mine/test/red/0.png", exif=exif)
    (root / "mine/test/red/deeper/0.png").unlink()
    data = config().load(Places(root))
    assert data.test.inputs[0, :, 1, 4].tolist() == list(RED)


def test_what_cannot_be_read_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"mine/train/blue cannot be read"):
        config(classes=["red", "blue"]).load(Places(root))
    empty = root / "mine/test/green/deeper/0.png"
    empty.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"test/green/deeper/0.png is no picture that can be read"):
        config().load(Places(root))
    empty.unlink()
    with pytest.raises(DataError, match=r"mine/test/green holds no picture"):
        config().load(Places(root))


def test_a_bomb_is_not_unpacked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with pytest.raises(DataError, match=r"pixels"):
        config().load(Places(root))


def test_links_are_not_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (8, 8), RED).save(outside / "secret.png")
    (root / "mine/test/green/link.png").symlink_to(outside / "secret.png")
    (root / "mine/test/green/folder").symlink_to(outside)
    assert len(config().load(Places(root)).test) == 2
    (root / "mine/train/blue").symlink_to(outside)
    with pytest.raises(DataError, match="is a link"):
        config(classes=["red", "blue"]).load(Places(root))
    (root / "other").symlink_to(root / "mine")
    with pytest.raises(DataError, match=r"/other is a link"):
        config(folder="other").load(Places(root))
    (root / "mine/train").rename(root / "training")
    (root / "mine/train").symlink_to(root / "training")
    with pytest.raises(DataError, match=r"mine/train is a link"):
        config().load(Places(root))


def test_no_other_format_is_opened_whatever_its_ending(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to a program."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (root / "mine/test/red/1.png").write_bytes(script)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given: pytest.fail("a program was started"))
    with pytest.raises(DataError, match=r"1.png is no picture that can be read"):
        config(test_pictures=3).load(Places(root))


def test_sixteen_bits_are_not_cut_off(root: Path) -> None:
    Image.new("I;16", (8, 8), 4000).save(root / "mine/test/red/1.png")
    with pytest.raises(DataError, match=r"1.png .*more than 8 bits"):
        config(test_pictures=3).load(Places(root))


def test_more_pictures_than_were_planned_are_refused_before_any_is_read(root: Path) -> None:
    (root / "mine/train/red/1.bmp").write_bytes(b"never looked at")
    with pytest.raises(DataError, match=r"holds 8 pictures, train_pictures says 7") as caught:
        config(train_pictures=7).load(Places(root))
    assert caught.value.field == "train_pictures"


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc", "a\\b", ""])
def test_folders_are_names(name: str) -> None:
    for field in ({"folder": name}, {"classes": ["red", name]}):
        document = config().model_dump() | field
        with pytest.raises(SpecError) as caught:
            parse_spec(
                {"data": document, "teachers": [{"model": {"type": "mlp"}}], "student": {"model": {"type": "mlp"}}}
            )
        assert caught.value.errors[0][0][:2] == ("data", next(iter(field)))


def test_two_classes_of_one_name_are_refused() -> None:
    model = {"model": {"type": "mlp"}}
    spec = parse_spec({"data": config(classes=["a", "a"]).model_dump(), "teachers": [model], "student": model})
    with pytest.raises(SpecError) as caught:
        make_plan(spec)
    assert caught.value.errors[0][0] == ("data", "classes")

"""Reading a large data set takes hours: whoever does it is heard all along, and stops when it is asked to."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcore.data import Places
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import parse_spec
from kdcore.train import run
from kdcore.uploads import DatasetOptions, archive, check_dataset, prepare
from kdcore.uploads.formats import open_source
from tests.kdcore.test_upload import ID, checked, config


class Polls:
    """Counts, and asks to stop after so many."""

    def __init__(self, most: float = float("inf")) -> None:
        self.count, self.most = 0, most

    def __call__(self) -> None:
        self.count += 1
        if self.count > self.most:
            raise Interrupted("cancel")


def write_texts(path: Path) -> Path:
    rows = [{"text": f"word{n % 7} and word{n}", "label": n % 2, "logits": [0.0, 1.0]} for n in range(60)]
    path.write_text("\n".join(json.dumps(row) + "\n" * 20 for row in rows))
    return path


def write_numbers(path: Path) -> Path:
    with path.open("wb") as file:
        np.savez(file, inputs=np.random.default_rng(0).normal(size=(60, 3)), labels=np.arange(60) % 2)
    return path


def write_pictures(path: Path, beside: int = 0) -> Path:
    """A packed tar of 60 pictures, and so many files of 1 MiB that are none."""
    with tarfile.open(path, "w:gz") as packed:
        for number in range(60 + beside):
            content = io.BytesIO(np.random.default_rng(number).bytes(2**20))
            if number < 60:
                content = io.BytesIO()
                Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "png")
            member = tarfile.TarInfo(f"{'ab'[number % 2]}/{number}.{'png' if number < 60 else 'dat'}")
            member.size = len(content.getbuffer())
            content.seek(0)
            packed.addfile(member, content)
    return path


def test_what_is_no_sample_is_passed_with_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, polls = write_pictures(tmp_path / "pictures", beside=8), Polls()
    source, _ = open_source(path, DatasetOptions(), polls)
    assert polls.count >= 68
    monkeypatch.setattr(archive, "MOST_MEMBER_BYTES", 2**17)
    before = polls.count
    list(source.samples())
    assert polls.count >= before + 68 + 8 * 7
    lines = Polls()
    source, _ = open_source(write_texts(tmp_path / "texts"), DatasetOptions(), lines)
    list(source.samples())
    assert lines.count > 60 * 20


@pytest.mark.parametrize("write", [write_texts, write_numbers, write_pictures])
def test_a_check_and_a_preparation_end_wherever_they_are_asked_to(write, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for module, name in ((prepare, "AT_ONCE"), (prepare, "TEXTS_AT_ONCE")):
        monkeypatch.setattr(module, name, 16)
    path, whole = write(tmp_path / "data"), Polls()
    check_dataset(path, DatasetOptions(), out=tmp_path / "page", poll=whole)
    assert whole.count > 60
    with pytest.raises(Interrupted):
        check_dataset(path, DatasetOptions(), out=tmp_path / "page", poll=Polls(whole.count - 1))
    data, cache, whole = config(checked(path)), tmp_path / "cache", Polls()
    data.load(Places(tmp_path, uploads={ID: path}, cache=tmp_path / "other", poll=whole))
    reading = Polls()
    list(open_source(path, DatasetOptions(), reading)[0].samples())
    assert whole.count > 60 + reading.count  # putting the samples in order polls, too
    for most in (0, 1, reading.count, whole.count - 2):
        with pytest.raises(Interrupted):
            data.load(Places(tmp_path, uploads={ID: path}, cache=cache, poll=Polls(most)))
        assert [path for path in cache.glob("*") if path.is_dir()] == []
    assert len(data.load(Places(tmp_path, uploads={ID: path}, cache=cache)).test) == 6


def test_a_job_is_cancelled_while_its_data_is_prepared(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "data")
    document = {
        "data": {"type": "upload", "dataset": ID, "profile": checked(path).model_dump(mode="json")},
        "teachers": [],
        "student": {"model": {"type": "mlp", "hidden": [4]}},
        "stages": [{"epochs": 1, "batch_size": 16, "losses": [{"type": "cross_entropy"}]}],
    }
    reporter = RecordingReporter(request="cancel", request_at=30)
    with pytest.raises(Interrupted):
        run(parse_spec(document), data_root=tmp_path, out=tmp_path / "out", reporter=reporter, uploads={ID: path})
    assert (reporter.polls, reporter.stages) == (31, [])

"""Texts: the tokenizer by hand, the two sources from files as they are published, and a job on texts to its end."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from kdcore.data import AGNewsConfig, DataError, Places, SST2Config
from kdcore.data.tokenizer import Tokenizer, cut
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec
from kdcore.train import run

GOOD, BAD = ("a fine film", "truly good , and fun"), ("dull and long", "not good at all !")


@pytest.fixture
def sst2(tmp_path: Path) -> Path:
    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = [
        f"{text} {number}\t{label}" for number in range(40) for label, texts in ((1, GOOD), (0, BAD)) for text in texts
    ]
    for name, count in (("train.tsv", 160), ("test.tsv", 40)):
        (folder / name).write_text("\n".join(["sentence\tlabel", *rows[:count]]) + "\n")
    return tmp_path


def test_cutting_by_hand() -> None:
    assert cut("It's 2,000 Rs—Ünïcode!") == ["it", "'", "s", "2", ",", "000", "rs", "—", "ü", "n", "ï", "code", "!"]


def test_tokens_by_hand() -> None:
    tokenizer = Tokenizer.of(["b a a", "c b a"], vocabulary=4, length=4)
    assert tokenizer.words == ("a", "b")
    assert tokenizer.encode(["b x a", "", "a a a a a"]).tolist() == [[3, 1, 2, 0], [1, 0, 0, 0], [2, 2, 2, 2]]


def test_the_document_is_enough_to_cut_a_text_alike() -> None:
    import re

    tokenizer = Tokenizer.of(["A b, c", "b c d"], vocabulary=6, length=5)
    told = json.loads(json.dumps(tokenizer.document()))
    words = {word: number for number, word in enumerate(told["words"], start=told["first"])}
    found = [words.get(word, told["unknown"]) for word in re.findall(told["pattern"], "C b, Q".lower())]
    padded = (found + [told["padding"]] * told["length"])[: told["length"]]
    assert padded == tokenizer.encode(["C b, Q"])[0].tolist()


def test_sst2_as_published(sst2: Path) -> None:
    data = SST2Config(vocabulary=20, length=6).load(Places(sst2))
    assert data.facts.classes == ("negative", "positive")
    assert (len(data.train), len(data.validation), len(data.test)) == (144, 16, 40)
    assert data.train.inputs.dtype == torch.int32
    assert int(data.train.inputs.max()) < 20
    assert data.tokenizer is not None
    assert "good" in data.tokenizer["words"]


def test_sst2_without_a_labelled_test_takes_dev(sst2: Path) -> None:
    (sst2 / "sst2" / "test.tsv").rename(sst2 / "sst2" / "dev.tsv")
    assert len(SST2Config().load(Places(sst2)).test) == 40


def test_ag_news_packed_and_in_part(tmp_path: Path) -> None:
    folder = tmp_path / "ag_news"
    folder.mkdir()
    rows = "".join(f'"{1 + n % 4}","Title ""{n}""","Text, of\nnews"\n' for n in range(24))
    (folder / "train_part.csv.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "test.csv").write_text(rows)
    data = AGNewsConfig(length=8).load(Places(tmp_path))
    assert len(data.train) + len(data.validation) == len(data.test) == 24
    assert data.test.labels.tolist() == [n % 4 for n in range(24)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sentence\tlabel\nfine\t2\n", "row 2: a sentence and a label"),
        (b"fine\n", "row 1: a sentence and a label"),
        (b"\xff\xfe\t1\n", "UTF-8"),
        (b"", "some sample"),
    ],
)
def test_files_that_are_not_what_they_should_be(sst2: Path, content: bytes, message: str) -> None:
    (sst2 / "sst2" / "test.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        SST2Config().load(Places(sst2))


def test_a_damaged_archive_and_a_missing_file_say_where(sst2: Path) -> None:
    (sst2 / "sst2" / "train.tsv").rename(sst2 / "sst2" / "train.tsv.gz")
    with pytest.raises(DataError, match=r"train\.tsv\.gz cannot be read"):
        SST2Config().load(Places(sst2))
    (sst2 / "sst2" / "train.tsv.gz").unlink()
    with pytest.raises(DataError, match=r"put train\* into"):
        SST2Config().load(Places(sst2))


def test_a_job_on_texts_ends_in_a_student_that_reads_tokens(sst2: Path, tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "data": {"type": "sst2", "vocabulary": 30, "length": 6},
        "teachers": [{"model": {"type": "lstm", "embedding": 8, "hidden": 8}, "train": {"epochs": 3}}],
        "student": {"model": {"type": "text_cnn", "embedding": 4, "channels": 4, "sizes": [3]}},
        "stages": [{"epochs": 3}],
    }
    out = tmp_path / "out"
    result = run(parse_spec(document), data_root=sst2, out=out, reporter=RecordingReporter(), download=False)
    model = json.loads((out / "model.json").read_text())
    assert model["input"] == {"shape": [6], "layout": "NT", "view": None}
    tokens = SST2Config(vocabulary=30, length=6).load(Places(sst2)).test
    runtime = onnxruntime.InferenceSession(str(out / "student.onnx"), providers=["CPUExecutionProvider"])
    logits = np.asarray(runtime.run(["logits"], {"input": tokens.inputs.long().numpy()})[0])
    assert (logits.argmax(1) == tokens.labels.numpy()).mean() == pytest.approx(result["student"]["accuracy"])
    assert "int64 tokens" in (out / "README.md").read_text()


@pytest.mark.parametrize("place", ["teachers", "student"])
def test_a_student_may_read_a_bag_of_words_of_the_teachers_text(sst2: Path, tmp_path: Path, place: str) -> None:
    bag = {"model": {"type": "mlp", "hidden": [4]}, "view": {"type": "bag_of_words"}}
    text = {"model": {"type": "gru", "embedding": 4, "hidden": 4}}
    document: dict[str, Any] = {
        "data": {"type": "sst2", "vocabulary": 30, "length": 6},
        "teachers": [(bag if place == "teachers" else text) | {"train": {"epochs": 1}}],
        "student": bag if place == "student" else text,
        "stages": [{"epochs": 1}],
    }
    out = tmp_path / "out"
    run(parse_spec(document), data_root=sst2, out=out, reporter=RecordingReporter(), download=False)
    assert json.loads((out / "model.json").read_text())["input"]["shape"] == ([30] if place == "student" else [6])

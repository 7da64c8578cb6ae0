"""Teachers with a tokenizer of their own: the same texts, cut for each; from one job's artifacts to another job."""

import csv
import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from kdcore.config import SpecError
from kdcore.data import DataError, Places, SST2Config, TokenizerConfig, UploadConfig
from kdcore.data.tokenizer import Tokenizer
from kdcore.errors import TrainingError
from kdcore.inputs import readers
from kdcore.modelfiles import ModelOptions, check_model
from kdcore.models import TextCNNConfig
from kdcore.opening import check_row
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec, spec_document
from kdcore.train import run
from kdcore.uploads import DatasetOptions, check_dataset

ID = "ds_" + "0" * 26
JOB = {"job": "job_" + "0" * 26}
GOOD, BAD = ("a fine film", "truly good , and fun"), ("dull and long", "not good at all !")
TEXTS = [
    (f"{text} {number}", label) for number in range(40) for label, texts in ((1, GOOD), (0, BAD)) for text in texts
]
LSTM = {"type": "lstm", "embedding": 8, "hidden": 8}
WIDE, NARROW = {"vocabulary": 30, "length": 6}, {"vocabulary": 9, "length": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with texts, and the same as a file to upload."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "sst2").mkdir()
    for name, count in (("train.tsv", 160), ("test.tsv", 60)):
        rows = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in TEXTS[:count])]
        (folder / "sst2" / name).write_text("\n".join(rows) + "\n")
    with (folder / "texts.csv").open("w", newline="") as file:
        names = ("negative", "positive")
        rows_of = (("test" if at % 5 == 0 else "train", text, names[label]) for at, (text, label) in enumerate(TEXTS))
        csv.writer(file).writerows([("split", "text", "label"), *rows_of])
    return folder


@pytest.fixture(scope="module")
def taught(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first job leaves: its teacher knows 30 tokens and reads six."""
    out = tmp_path_factory.mktemp("first") / "out"
    document = {
        "data": {"type": "sst2", **WIDE},
        "teachers": [{"model": LSTM, "train": {"epochs": 8, "batch_size": 16}}],
        "student": {"model": {"type": "gru", "embedding": 2, "hidden": 2}},
        "stages": [{"epochs": 1}],
        "baseline": False,
    }
    run(parse_spec(document), data_root=root, out=out, reporter=RecordingReporter(), download=False)
    return out


def tokenizer_of(out: Path) -> dict[str, Any]:
    """As the artifact `model.json` has it."""
    found: dict[str, Any] = json.loads((out / "model.json").read_text())["preprocessing"]["tokenizer"]
    return found


def second(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"type": "sst2", **NARROW},
        "teachers": [{"model": LSTM, "weights": JOB, **({"tokenizer": tokenizer} if tokenizer else {})}],
        "student": {"model": {"type": "text_cnn", "embedding": 4, "channels": 4, "sizes": [3]}},
        "stages": [{"epochs": 2}],
        "baseline": False,
    } | changes


def teach(document: dict[str, Any], root: Path, weights: Path, out: Path, **options: Any) -> dict[str, Any]:
    spec = parse_spec(document)
    assert parse_spec(spec_document(spec)) == spec
    given = {"data_root": root, "out": out, "reporter": RecordingReporter(), "download": False}
    return run(spec, teacher_weights={0: weights / "teacher-1.safetensors"}, **given, **options)


def test_the_document_of_a_job_is_read_as_it_is(taught: Path) -> None:
    found = TokenizerConfig.model_validate(tokenizer_of(taught))
    assert (found.tokens, found.length) == (30, 6)
    assert found.tokenizer().document() == tokenizer_of(taught)


def test_rows_of_several_tokenizers_by_hand(root: Path) -> None:
    own = TokenizerConfig(words=["film", "fun", "dull"], length=3)
    other = TokenizerConfig(words=["and"], length=5, vocabulary=7)
    data = SST2Config(**NARROW).load(Places(root, tokenizers=[own, other]))
    alone = SST2Config(**NARROW).load(Places(root))
    assert data.facts == alone.facts
    assert data.test.inputs.shape == (60, 4 + 3 + 5)
    student, (first, plain, last) = readers(data.facts, None, [(None, own), (None, None), (None, other)])
    for reader, tokenizer in ((first, own), (last, other)):
        wanted = tokenizer.tokenizer().encode([text for text, _ in TEXTS[:60]])
        assert torch.equal(reader(data.test.inputs[:]), wanted)
        assert (reader.facts.input_shape, reader.facts.vocabulary) == ((tokenizer.length,), tokenizer.tokens)
    for reader in (student, plain):
        assert torch.equal(reader(data.test.inputs[:]), alone.test.inputs[:])
        assert reader.facts == alone.facts


@pytest.mark.parametrize("keep", [True, False])
def test_a_teacher_of_one_job_teaches_another_whose_words_are_others(
    root: Path, taught: Path, tmp_path: Path, keep: bool
) -> None:
    before = json.loads((taught / "result.json").read_text())["teacher"]
    document = second(tokenizer_of(taught), keep_targets=keep)
    result = teach(document, root, taught, tmp_path)
    assert result["teacher"]["accuracy"] == before["accuracy"] > 0.9  # the same texts, read as it learnt to
    assert result["teacher"]["nll"] == pytest.approx(before["nll"])
    runtime = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    assert runtime.get_inputs()[0].shape[1] == 4
    model = json.loads((tmp_path / "model.json").read_text())
    assert len(model["preprocessing"]["tokenizer"]["words"]) == 7
    assert model["input"]["shape"] == [4]


def test_without_it_the_teacher_does_not_fit_or_reads_other_words(root: Path, taught: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"embedding\.weight has shape \[30, 8\], the model's is \[9, 8\]"):
        teach(second(None), root, taught, tmp_path)
    larger = tokenizer_of(taught) | {"vocabulary": 31}
    with pytest.raises(TrainingError) as caught:
        teach(second(larger), root, taught, tmp_path)
    assert caught.value.code == "bad_teacher_weights"
    turned = tokenizer_of(taught) | {"words": tokenizer_of(taught)["words"][::-1]}
    wrong = teach(second(turned), root, taught, tmp_path)
    assert wrong["teacher"]["accuracy"] < json.loads((taught / "result.json").read_text())["teacher"]["accuracy"]


def test_a_teacher_with_its_own_bag_of_words(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = {"words": ["film", "fun", "dull"], "length": 5}
    bag = {"model": {"type": "mlp", "hidden": [4]}, "view": {"type": "bag_of_words"}, "weights": JOB, "tokenizer": own}
    spec = parse_spec(second(None, teachers=[bag]))
    assert make_plan(spec).teachers[0].parameters == 5 * 4 + 4 + 4 * 2 + 2
    save_file(spec.teachers[0].model.build((5,), 2).state_dict(), tmp_path / "teacher-1.safetensors")
    result = teach(second(None, teachers=[bag]), root, tmp_path, tmp_path / "out")
    assert "agreement" in result["student"]


def test_uploaded_texts_are_cut_for_each_as_well(root: Path, taught: Path, tmp_path: Path) -> None:
    profile = check_dataset(root / "texts.csv", DatasetOptions(), out=tmp_path)
    data = {"type": "upload", "dataset": ID, "profile": profile.model_dump(mode="json"), **NARROW}
    places: dict[str, Any] = {"uploads": {ID: root / "texts.csv"}, "cache": tmp_path / "cache"}
    document = second(tokenizer_of(taught), data=data)
    result = teach(document, root, taught, tmp_path / "out", **places)
    assert result["teacher"]["accuracy"] > 0.9
    config = UploadConfig.model_validate(data)
    own = TokenizerConfig.model_validate(tokenizer_of(taught))
    both = config.load(Places(root, tokenizers=[own], **places))
    alone = config.load(Places(root, **places))
    assert torch.equal(both.test.inputs[:][:, :4], alone.test.inputs[:])
    assert both.test.inputs.shape[1] == 10
    kinds = ("targets-", "teacher-")  # beside the prepared forms, each kept under its own name
    folders = [each for each in (tmp_path / "cache").iterdir() if each.is_dir() and not each.name.startswith(kinds)]
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("changes", "loc", "message"),
    [
        ({"words": []}, ("words",), "at least 1"),
        ({"words": ["Fun"]}, ("words",), "'Fun' (at 0) is no word"),
        ({"words": ["fun", "so so"]}, ("words",), "'so so' (at 1) is no word"),
        ({"words": ["fun", "film", "fun"]}, ("words",), "'fun' is there twice"),
        ({"words": ["fun", 3]}, ("words", 1), "must be text"),
        ({"length": 0}, ("length",), "at least 1"),
        ({"length": None}, ("length",), "whole number"),
        ({"vocabulary": 4}, ("vocabulary",), "3 words, padding and the unknown word are 5 tokens"),
        ({"pattern": "[a-z]+"}, ("pattern",), "another tokenizer cannot be read"),
        ({"lowercase": False}, ("lowercase",), "must be True"),
        ({"first": 4}, ("first",), "must be 2"),
        ({"merges": []}, ("merges",), "unknown field 'merges'"),
    ],
)
def test_bad_tokenizers_lead_to_their_field(changes: dict[str, Any], loc: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(second({"words": ["film", "fun", "dull"], "length": 5} | changes))
    [(found, said)] = caught.value.errors
    assert found == ("teachers", 0, "tokenizer", *loc)
    assert message in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"type": "digits"}, "teachers": [{"model": {"type": "mlp"}, "weights": JOB}]}, "is for texts"),
        ({"teachers": [{"model": LSTM}]}, "trained here reads the data's own tokens"),
        ({"teachers": [{"model": {"type": "logits"}}]}, "is no network"),
    ],
)
def test_teachers_that_have_none_of_their_own(changes: dict[str, Any], message: str) -> None:
    changes["teachers"][0]["tokenizer"] = {"words": ["fun"], "length": 5}
    with pytest.raises(SpecError) as caught:
        make_plan(parse_spec(second(None, **changes)))
    assert any(loc == ("teachers", 0, "tokenizer") and message in said for loc, said in caught.value.errors)


def test_a_source_that_knows_nothing_of_it_is_told(root: Path) -> None:
    data = SST2Config(**NARROW).load(Places(root))
    check_row(data, [])
    with pytest.raises(DataError, match="its own tokenizer alone"):
        check_row(data, [TokenizerConfig(words=["fun"], length=5)])


def test_an_uploaded_model_is_compared_with_its_tokenizer(tmp_path: Path) -> None:
    config = TextCNNConfig(embedding=4, channels=4)
    save_file(config.build((5,), 2, 9).state_dict(), tmp_path / "w")
    own = TokenizerConfig(words=["film", "fun", "dull"], length=5, vocabulary=9)
    said: dict[str, Any] = {"model": config, "classes": ["negative", "positive"]}
    assert check_model(tmp_path / "w", ModelOptions(tokenizer=own, **said), out=tmp_path).model == config
    small = own.model_copy(update={"vocabulary": None})
    with pytest.raises(TrainingError, match=r"embedding\.weight has shape \[9, 4\], the model's is \[5, 4\]"):
        check_model(tmp_path / "w", ModelOptions(tokenizer=small, **said), out=tmp_path)
    for other in ({"vocabulary": 8}, {"input_shape": [6]}):
        with pytest.raises(ValidationError, match="leave"):
            ModelOptions(tokenizer=own, **other)


def test_words_are_counted_for_whom_they_are() -> None:
    assert Tokenizer.of(["b a a", "c b a"], vocabulary=4, length=4).document()["vocabulary"] == 4


def test_what_two_teachers_say_of_the_same_weights_is_kept_for_each(root: Path, taught: Path, tmp_path: Path) -> None:
    """Their tokenizers are as long and know as many words, so that nothing but the words tells them apart."""
    own = tokenizer_of(taught)
    other = {**own, "words": own["words"][::-1]}
    document = second(own)
    document["teachers"].append({"model": LSTM, "weights": JOB, "tokenizer": other})
    for place in (1, 2):
        document["stages"][0]["losses"] = [{"type": "kd", "teacher": place}]
        reporter = RecordingReporter()
        weights = dict.fromkeys((0, 1), taught / "teacher-1.safetensors")
        run(
            parse_spec(document), data_root=root, out=tmp_path / str(place), reporter=reporter, download=False,
            teacher_weights=weights, cache=tmp_path / "cache",
        )  # fmt: skip
        assert [data["reused"] for name, data in reporter.events if name == "targets_kept"] == [False]
    assert len(list((tmp_path / "cache").glob("targets-*/"))) == 2

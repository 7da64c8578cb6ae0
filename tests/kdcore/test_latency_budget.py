"""Students by latency: what is estimated and from what, which one is picked, and what is measured in the end."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdcore import __main__ as command
from kdcore.config import SpecError
from kdcore.data import AGNewsConfig, DataFacts, DigitsConfig
from kdcore.ladders import LADDERS, TYPES, Family, members
from kdcore.latency import late, latency_budget, measure_latency
from kdcore.latency_estimate import estimate_model
from kdcore.machine_speed import MachineSpeed, measure_machine
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec, spec_document
from kdcore.train import run
from tests.speed import SPEED

DIGITS = DigitsConfig().facts()
MLP = {"type": "mlp", "hidden": [16]}


def document(student: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"data": {"type": "digits"}, "teachers": [{"model": MLP}], "student": student} | changes


def refusal(student: dict[str, Any], speed: MachineSpeed | None = SPEED, **changes: Any) -> list[Any]:
    with pytest.raises(SpecError) as caught:
        parse_spec(document(student, **changes), speed)
    return caught.value.errors


def test_an_estimate_by_hand() -> None:
    simple = SPEED.model_copy(update={"rates": [rate.model_copy(update={"seconds": 1e-9}) for rate in SPEED.rates]})
    found = estimate_model(TYPES["mlp"].model_validate({"hidden": [32]}), DIGITS, simple)
    flops = 2 * (64 * 32 + 32 * 10)
    # Two numbers are written for each of 64 by the normalisation; the two products bring their relu along.
    nodes = {SPEED.call + count * SPEED.node + flops * 1e-9 + 2 * 64 * 4 * SPEED.byte for count in range(4, 8)}
    assert any(found == pytest.approx(1000 * seconds) for seconds in nodes)


def test_speeds_between_two_sizes_and_beyond() -> None:
    sizes = {rate.size: rate.seconds for rate in SPEED.rates if rate.kind == "product"}
    assert SPEED.seconds_per_flop("product", 64) == pytest.approx(sizes[64])
    assert SPEED.seconds_per_flop("product", 32) == pytest.approx((sizes[16] + sizes[64]) / 2)
    assert SPEED.seconds_per_flop("product", 1) == sizes[16]
    assert SPEED.seconds_per_flop("product", 1e9) == sizes[768]


@pytest.mark.parametrize("family", LADDERS)
def test_every_family_can_be_estimated_and_larger_ones_take_longer(family: Family) -> None:
    texts = family in ("lstm", "gru", "text_cnn", "text_transformer")
    facts: DataFacts = AGNewsConfig(length=8).facts() if texts else parse_spec(
        document({"model": MLP}, data={"type": "cifar10"})
    ).data.facts()  # fmt: skip
    found = members(family, None, facts)
    smallest, largest = (estimate_model(found[at][1], facts, SPEED) for at in (0, -1))
    assert 0 < SPEED.call * 1000 < smallest < largest < 10_000


def test_it_picks_the_largest_that_is_fast_enough() -> None:
    spec = parse_spec(document({"max_latency_ms": 0.02, "family": "cnn"}), SPEED)
    choice = make_plan(spec, SPEED).student_choice
    took = {count: estimate_model(model, DIGITS, SPEED) for count, model in members("cnn", None, DIGITS)}
    assert choice is not None
    assert choice.parameters == max(count for count, each in took.items() if each <= 0.02)
    assert choice.latency_ms == took[choice.parameters]
    assert (choice.by, choice.family) == ("max_latency_ms", "cnn")
    assert "the largest that takes at most 0.02 ms" in choice.reason
    assert "measured on a processor; the next one" in choice.reason
    slower = SPEED.model_copy(update={"call": SPEED.call * 3})
    smaller = make_plan(parse_spec(document({"max_latency_ms": 0.02, "family": "cnn"}), slower), slower)
    assert smaller.student.parameters < choice.parameters


def test_the_complete_spec_names_the_model_and_needs_no_calibration() -> None:
    spec = parse_spec(document({"max_latency_ms": 0.02}), SPEED)
    assert spec.student.model.type == "mlp"
    assert parse_spec(spec_document(spec)) == spec
    assert make_plan(spec).student_choice is None
    named = parse_spec(document({"model": MLP, "max_latency_ms": 1e-6}))  # not refused: what it takes is measured
    assert named.student.model.hidden == [16]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("student", "loc", "message"),
    [
        ({"max_latency_ms": 0}, ("max_latency_ms",), "above 0"),
        ({"max_latency_ms": "fast"}, ("max_latency_ms",), "must be a number"),
        ({"max_latency_ms": True}, ("max_latency_ms",), "must be a number"),
        ({"max_latency_ms": 1e-6}, ("max_latency_ms",), "the fastest mlp takes about 0.00"),
        ({"max_latency_ms": 1e-6, "family": "cnn"}, ("max_latency_ms",), "or name another `family`"),
        ({"max_latency_ms": 1.0, "family": "lstm"}, ("family",), "lstm reads texts"),
        ({"max_latency_ms": 1.0, "shrink": {"width": 0.5}}, ("max_latency_ms",), "give either `shrink`"),
        ({"max_latency_ms": 1.0, "max_parameters": 2000}, ("max_latency_ms",), "give either `max_parameters`"),
    ],
)
def test_bad_budgets_lead_to_their_field(student: dict[str, Any], loc: tuple[str, ...], message: str) -> None:
    [(found, said)] = refusal(student)
    assert found == ("student", *loc)
    assert message in said


def test_without_a_calibration_it_says_how_to_have_one() -> None:
    [(loc, message)] = refusal({"max_latency_ms": 1.0}, None)
    assert loc == ("student", "max_latency_ms")
    assert "`distillery calibrate`" in message
    assert "name the student's `model`" in message


def test_a_machine_is_measured_as_it_is() -> None:
    found = measure_machine("this one", seconds=0.01)
    assert MachineSpeed.model_validate_json(found.model_dump_json()) == found
    assert {rate.kind for rate in found.rates} == {rate.kind for rate in SPEED.rates}
    assert 0 < found.call < 0.01
    assert found.gflops() > 0.01
    small, large = (
        estimate_model(TYPES["cnn"].model_validate({"channels": [width, width]}), DIGITS, found) for width in (2, 256)
    )
    assert small < large


def test_what_is_compared_is_what_the_result_measured(tiny: dict[str, Any], tmp_path: Path) -> None:
    reporter = RecordingReporter()
    spec = parse_spec(tiny | {"student": {"model": MLP, "max_latency_ms": 1e-6}, "baseline": False})
    result = run(spec, data_root=tmp_path, out=tmp_path / "out", reporter=reporter, download=False)
    took = result["student"]["latency_ms"]["p50"]
    assert result["latency_budget"] == {"max_ms": 1e-6, "measured_ms": took, "met": False}
    assert [data for name, data in reporter.events if name == "latency_missed"] == [result["latency_budget"]]
    assert "1e-06 ms are allowed" in result["warnings"][-1]
    again = measure_latency(tmp_path / "out" / "student.onnx", DIGITS)["latency_ms"]["p50"]
    assert took / 20 < again < took * 20
    assert json.loads((tmp_path / "out" / "model.json").read_text())["provenance"]["student"]["max_latency_ms"] == 1e-6


def test_one_that_is_met_is_no_warning() -> None:
    met = latency_budget(2.0, {"latency_ms": {"p50": 1.5}})
    assert met == {"max_ms": 2.0, "measured_ms": 1.5, "met": True}
    assert late(met) == late(latency_budget(None, {})) == []


def test_the_command_measures_its_own_machine_once(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "job.json", tmp_path / "out"
    tiny |= {"student": {"max_latency_ms": 1.0, "family": "mlp"}, "baseline": False, "name": "fast"}
    path.write_text(json.dumps(tiny))
    arguments = [str(path), "--out", str(out), "--no-download", "--device", "cpu"]
    assert command.main(arguments) == 0
    assert "the student is of mlp: of 42 models of this family the largest" in capsys.readouterr().err
    saved = sorted((out / "checkpoints").glob("*.pt"))[-1]

    def another_machine(cpu: str) -> MachineSpeed:
        raise AssertionError("what was picked when the job began is what it goes on with")

    monkeypatch.setattr(command, "measure_machine", another_machine)
    assert command.main([*arguments[:-2], "--resume", str(saved)]) == 0
    assert command.main([*arguments[:-2], "--resume", str(tmp_path / "none.pt")]) == 1
    assert "failed (bad_checkpoint)" in capsys.readouterr().err

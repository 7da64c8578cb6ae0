"""What a result says of a student that has several teachers: its likeness to each of them."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from kdcore.data import Places
from kdcore.evaluate import agreement, predictive_kl
from kdcore.inputs import unit
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec
from kdcore.state import teacher_name
from kdcore.train import run


def test_the_likeness_to_each_teacher_is_there(tmp_path: Path) -> None:
    spec = parse_spec({
        "data": {"type": "digits", "train_samples": 200},
        "teachers": [
            {"model": {"type": "mlp", "hidden": [width]}, "train": {"epochs": epochs}}
            for width, epochs in ((32, 20), (16, 1))
        ],
        "student": {"model": {"type": "mlp", "hidden": [8]}},
        "stages": [{"epochs": 5, "losses": [{"type": "multi_teacher"}]}],
    })  # fmt: skip
    result = run(spec, data_root=tmp_path, out=tmp_path, reporter=RecordingReporter(), download=False)
    data = spec.data.load(Places(tmp_path))
    test = unit(data.test.inputs[:], data.scale)
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"))
    said = torch.from_numpy(session.run(None, {"input": test.numpy()})[0])
    for place, found in enumerate(result["student"]["by_teacher"]):
        network = spec.teachers[place].model.build((1, 8, 8), 10).eval()
        network.load_state_dict(load_file(tmp_path / f"{teacher_name(place)}.safetensors"))
        normalised = (test - torch.tensor(data.facts.mean)) / torch.tensor(data.facts.std)
        with torch.no_grad():
            teacher = network(normalised)
        assert found["agreement"] == pytest.approx(agreement(said, teacher), abs=0.005)
        assert found["predictive_kl"] == pytest.approx(predictive_kl(said, teacher), rel=1e-2)
    first, second = result["student"]["by_teacher"]
    assert first != second
    assert {name: result["student"][name] for name in first} == first
    assert len(result["baseline"]["by_teacher"]) == 2
    card = (tmp_path / "README.md").read_text()
    for place, found in enumerate((first, second), start=1):
        row = next(line for line in card.splitlines() if line.startswith(f"| predictive KL from teacher {place} |"))
        assert f"{found['predictive_kl']:.4f}" in row

"""Dropout by random words: the shares, the expectation, the gradient, and where torch's own is used."""

import pytest
import torch

from kdcore.choices import Choices, apply
from kdcore.models.dropout import Dropout
from kdcore.opening import choose_here
from kdcore.spec import parse_spec


@pytest.fixture(autouse=True)
def _by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dropout, "by_words", True)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_share_of_p_is_dropped_and_the_rest_scaled(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = Dropout(p)(torch.ones(1000, 1003, dtype=dtype))  # no multiple of four
    kept = found != 0
    assert found.dtype == dtype
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / found.numel()) ** 0.5 + 2**-17)
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-4
    assert torch.allclose(found[kept].double(), torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=tolerance)


def test_units_are_independent() -> None:
    """Of the four that share a word, and from one word to the next: no pair meets more often than it should."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(200_000, 8)) != 0).double()
    correlations = torch.corrcoef(kept.T) - torch.eye(8, dtype=torch.float64)
    assert correlations.abs().max() < 5 / 200_000**0.5
    rows = torch.corrcoef(torch.stack([kept[:-1, 0], kept[1:, 0]]))
    assert rows[0, 1].abs() < 5 / 200_000**0.5


def test_the_gradient_is_the_mask() -> None:
    inputs = torch.randn(64, 33, requires_grad=True)
    found = Dropout(0.4)(inputs)
    found.sum().backward()
    assert torch.allclose(inputs.grad * inputs, found)
    assert inputs.grad.unique().tolist() == pytest.approx([0.0, 1 / 0.6], abs=1e-4)


def test_the_global_generator_decides() -> None:
    ones, layer, found = torch.ones(50, 7), Dropout(0.5), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(layer(ones))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    inputs = torch.randn(10, 10)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(inputs), inputs)
    assert torch.equal(Dropout(0.0)(inputs), inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_batch_and_a_single_unit() -> None:
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
    assert Dropout(0.5)(torch.ones(1)).shape == (1,)
    assert Dropout(0.5)(torch.ones(())).shape == ()


def test_a_job_s_choice_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(
        {"data": {"type": "digits"}, "teachers": [{"model": {"type": "mlp"}}], "student": {"model": {"type": "mlp"}}}
    )
    chosen = choose_here(spec, "cpu")
    assert chosen.masks == "words"
    earlier = Choices.model_validate(chosen.model_dump(exclude={"masks"}))
    ones = torch.ones(30, 30)
    for choices, same in ((earlier, True), (chosen, False)):
        apply(choices)
        torch.manual_seed(0)
        found = Dropout(0.5)(ones)
        torch.manual_seed(0)
        assert torch.equal(found, torch.nn.Dropout(0.5)(ones)) == same

"""What is kept of a running stage: copies of its weights, and whether these are finite."""

import pytest
import torch
from torch import nn

from kdcore.state import all_finite, copy_weights


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("place", [0, 500, 1000])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(wrong: float, dtype: torch.dtype, place: int) -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0)).to(dtype)
    others = [torch.arange(5), torch.empty(0), torch.tensor(1.0)]
    assert all_finite([*others, values])
    values[place] = wrong
    assert not all_finite([*others, values])


def test_the_largest_finite_number_is_finite_and_nothing_is_as_well() -> None:
    assert all_finite([torch.full((3,), torch.finfo(torch.float64).max, dtype=torch.float64)])
    assert all_finite([])
    assert all_finite([torch.arange(3)])


def test_a_copy_is_written_over_and_left_alone_by_updates() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.to(memory_format=torch.channels_last)
    first = copy_weights(model)
    places = {name: value.data_ptr() for name, value in first.items()}
    with torch.no_grad():
        model[0].weight.add_(1)
        model[1].num_batches_tracked.add_(7)
    assert torch.equal(first["0.weight"] + 1, model[0].weight)
    assert first["1.num_batches_tracked"] == 0
    second = copy_weights(model, into=first)
    assert {name: value.data_ptr() for name, value in second.items()} == places
    assert torch.equal(second["0.weight"], model[0].weight)
    assert second["0.weight"].is_contiguous()
    assert second["1.num_batches_tracked"] == 7

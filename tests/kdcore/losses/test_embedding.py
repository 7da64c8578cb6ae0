"""Squared distances by inner products: against the differences themselves."""

import pytest
import torch
from torch import Tensor

from kdcore.losses import instance_graph
from kdcore.losses.embedding import squared_distances


def by_differences(embedding: Tensor) -> Tensor:
    return (embedding[:, None] - embedding[None, :]).square().sum(dim=2)


@pytest.mark.parametrize(
    ("samples", "width", "far"), [(2, 1, 0.0), (9, 40, 0.0), (9, 40, 1e4), (30, 3000, 3.0), (5, 20_000, 1.0)]
)
def test_squared_distances_and_their_gradient(samples: int, width: int, far: float) -> None:
    given = far + torch.randn(samples, width, generator=torch.Generator().manual_seed(samples))
    weights = torch.rand(samples, samples, generator=torch.Generator().manual_seed(width))
    ours, exact = given.clone().requires_grad_(), given.double().requires_grad_()
    found, wanted = squared_distances(ours), by_differences(exact)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-7, atol=0)
    assert found.diagonal().count_nonzero() == 0
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert ours.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-5, atol=1e-7 * exact.grad.abs().max().item())


def test_near_samples_far_from_zero_keep_their_distances() -> None:
    """From a Gram matrix in float32 nothing would be left of them."""
    given = 1e4 + 0.1 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(squared_distances(given).double(), by_differences(given.double()), rtol=1e-6, atol=0)


def test_equal_samples_are_not_apart() -> None:
    given = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    given = torch.cat([given, -given]).requires_grad_()
    found = squared_distances(given)
    assert found[:4, :4].count_nonzero() == found[4:, 4:].count_nonzero() == 0
    assert (found[:4, 4:] > 0).all()
    found[:4, :4].sum().backward()
    assert given.grad is not None
    assert given.grad.count_nonzero() == 0
    assert squared_distances(torch.ones(1, 3)).tolist() == [[0.0]]


def test_double_stays_double_under_autocast() -> None:
    """`bf16` jobs compute their losses within autocast, which lowers the precision of products."""
    given = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_distances(given)
    assert torch.equal(found, squared_distances(given))


def test_its_gradient_by_finite_differences() -> None:
    given = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(squared_distances, (given,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_distance(bad: float) -> None:
    """As 0 it would teach that all samples are alike, and nothing would tell."""
    given = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    given[1, 2] = bad
    assert squared_distances(given).isnan().all()
    assert instance_graph([torch.ones(4, 3)], [given]).isnan()


def test_no_copy_of_a_wide_map_is_kept() -> None:
    kept: list[int] = []

    def noted(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    given = torch.randn(8, 50_000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        squared_distances(given)
    assert sorted(kept) == [8 * 8 * 4, 8 * 50_000 * 4]  # the map itself, which is there anyway

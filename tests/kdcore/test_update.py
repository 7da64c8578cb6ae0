"""An update by the kernel itself is the optimizer's own, to the byte."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcore.optim import AdamConfig, AdamWConfig, SGDConfig
from kdcore.update import Update, counts

OPTIMIZERS = [
    SGDConfig(lr=0.1),
    SGDConfig(lr=0.1, nesterov=True),
    SGDConfig(lr=0.1, momentum=0.0, weight_decay=0.0),
    AdamConfig(lr=0.01, weight_decay=0.1),
    AdamWConfig(lr=0.01, betas=(0.8, 0.99)),
]


def made(config: Any, update: bool, skips: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A small net after some steps, with the rate halved in the midst; `skips`: the bias has no gradient in some."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = config.build(net.parameters())
    direct = Update(optimizer)
    for step in range(6):
        rate = config.lr * (0.5 if step > 3 else 1.0)
        loss = net(torch.randn(8, 5)).square().sum()
        direct.forget_gradients()
        loss.backward()
        if skips and step in ((3,) if config.type == "sgd" else (0, 3)):  # fused SGD needs all in its first
            net[2].bias.grad = None
        if update:
            direct.make(rate)
        else:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
    return net.state_dict(), optimizer.state_dict()["state"]


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: f"{config.type}-{config.weight_decay}")
@pytest.mark.parametrize("skips", [False, True])
def test_the_same_bytes_as_the_optimizer_itself(config: Any, skips: bool) -> None:
    (found, states), (wanted, own) = made(config, True, skips), made(config, False, skips)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    for place, state in own.items():
        for name, value in state.items():
            assert value is None if states[place][name] is None else torch.equal(states[place][name], value)


def test_the_kernel_is_called_itself_from_the_second_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *a, **k: (calls.append(1), step(*a, **k))[1])
    made(AdamConfig(), True)
    assert len(calls) == 1


def test_another_optimizer_is_called_itself() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.RMSprop([weight], lr=0.1)
    update = Update(optimizer)
    for _ in range(3):
        update.forget_gradients()
        weight.sum().backward()
        update.make(0.01)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert (weight < 1).all()


def test_one_addition_counts_for_every_parameter() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    optimizer = AdamConfig().build(net.parameters())
    update = Update(optimizer)
    for _ in range(4):
        update.forget_gradients()
        net(torch.randn(8, 5)).sum().backward()
        update.make(0.1)
    states = [optimizer.state[each] for each in net.parameters()]
    assert len({state["step"]._base.data_ptr() for state in states}) == 1
    assert [float(state["step"]) for state in states] == [4] * 4
    together = counts(states)
    assert counts(states) is together
    assert len(counts(states[:2])) == 2, "those of fewer parameters are counted apart"
    assert counts(states[2:]) is not together

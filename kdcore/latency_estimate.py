"""What a network will probably take for one sample once it is exported, from a machine's calibration.

An estimate of the one latency that a result knows: `student.latency_ms.p50`, of `student.onnx` under onnxruntime with
one sample on one CPU thread (`kdcore.latency`). The network is run on torch's meta device, and each operation is
charged: products and convolutions by their FLOPs, at the speed that was measured at their size, everything else by
what it writes, and each with what a node takes besides. What onnxruntime folds into the product before it is free.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdcore.data import DataFacts
from kdcore.inputs import Classifier, Normalise, example_inputs
from kdcore.machine_speed import Kind, MachineSpeed
from kdcore.meter import Meter
from kdcore.models import BaseModelConfig, Network

aten = torch.ops.aten
FOLDED = (aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm, aten.relu,
          aten.relu_, aten.clamp, aten.hardtanh, aten.batch_norm)  # fmt: skip
"""Into the convolution or product that they follow."""


class _Clock(Meter):  # type: ignore[no-untyped-call]
    """Adds up the seconds of what is run under it.

    Attributes:
        recurrent: whether a recurrent layer runs, which onnxruntime computes as one node.
    """

    def __init__(self, speed: MachineSpeed, weights: int) -> None:
        super().__init__()
        self.seconds = speed.call
        self.recurrent = False
        self._speed, self._weights = speed, weights
        self._folds = False

    def charge(self, func: Any, args: tuple[Any, ...], flops: int, written: int) -> None:
        operation = func.overloadpacket
        free = self._folds and operation in FOLDED
        self._folds = bool(flops) or free
        if flops:
            self.seconds += flops * self._speed.seconds_per_flop(*self._kind(operation, args))
        if not (self.recurrent or free):
            self.seconds += self._speed.node + (0 if flops else written * self._speed.byte)

    def _kind(self, operation: Any, args: tuple[Any, ...]) -> tuple[Kind, float]:
        shapes = [tuple(each.shape) for each in args if isinstance(each, Tensor)]
        if self.recurrent:
            return "recurrent", self._weights
        if operation is aten.convolution:
            outer, inner = shapes[1][:2]
            groups = args[8]
            return ("depthwise", outer) if groups == outer > 1 else ("convolution", math.sqrt(inner * groups * outer))
        rows = shapes[-2][-2]
        return ("linear", self._weights) if rows == 1 else ("product", math.sqrt(shapes[-1][-1] * shapes[-1][-2]))


def estimate_model(model: BaseModelConfig, facts: DataFacts, speed: MachineSpeed) -> float:
    """Milliseconds of a model that reads such samples."""
    with torch.device("meta"):
        network = model.build(facts.input_shape, len(facts.classes), facts.vocabulary)
    return estimate_latency(network, facts, speed)


def estimate_latency(network: Network, facts: DataFacts, speed: MachineSpeed) -> float:
    """Milliseconds.

    Args:
        network: on the meta device.
        facts: of what it reads.
    """
    read = (each for each in network.parameters() if each.shape[:1] != (facts.vocabulary,))  # of a table only rows are
    weights = sum(parameter.numel() * parameter.element_size() for parameter in read)
    with torch.device("meta"), torch.no_grad():
        exported, inputs = Classifier(Normalise(facts), network).eval(), example_inputs(facts, 1)
        clock = _Clock(speed, weights)

        def within(*_: Any) -> None:
            clock.recurrent = True

        def after(*_: Any) -> None:
            clock.recurrent = False
            clock.seconds += speed.node

        for module in network.modules():
            if isinstance(module, nn.RNNBase):
                module.register_forward_pre_hook(within)
                module.register_forward_hook(after)
        with clock:
            exported(inputs)
    return clock.seconds * 1000

"""How fast a machine runs the layers of exported models: small graphs, each timed as a student is in the end.

By onnxruntime with one sample on one CPU thread, as `kdcore.latency` measures; what is kept of a graph is the median of
its calls. torch and the catalogue take no part, so that it takes seconds and can be done on any machine.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper
from pydantic import Field

from kdcore.config import Config
from kdcore.latency import call_seconds, open_session

OPSET, IR_VERSION = 18, 9
"""Which every onnxruntime reads that this project allows."""
SECONDS = 0.1
"""For each graph; one call is always made."""
PLACES = 64
"""Rows of a product, and places of a sequence."""

Kind = Literal["linear", "product", "convolution", "depthwise", "recurrent"]
Seconds = float


class Rate(Config):
    """Seconds per FLOP of one kind of layer at one size."""

    kind: Kind
    size: float = Field(gt=0)
    """Of `linear` and `recurrent` all bytes of weights, which every call reads; of the others the channels."""
    seconds: Seconds = Field(ge=0, allow_inf_nan=False)


class MachineSpeed(Config, extra="ignore"):
    """A calibration: what was measured of one machine."""

    form: Literal[1] = 1
    """Of what is measured: a calibration of another form says nothing here."""
    cpu: str
    onnxruntime: str
    """Its version."""
    call: Seconds = Field(ge=0, allow_inf_nan=False)
    """Of a graph with nothing to compute."""
    node: Seconds = Field(ge=0, allow_inf_nan=False)
    """That a node takes beside what it computes."""
    byte: Seconds = Field(ge=0, allow_inf_nan=False)
    """Per byte that a node writes, of those that are no products."""
    rates: list[Rate] = Field(min_length=1)

    def seconds_per_flop(self, kind: Kind, size: float) -> Seconds:
        """Between two sizes that were measured by their logarithms; beyond the last one as there."""
        points = sorted((rate.size, rate.seconds) for rate in self.rates if rate.kind == kind)
        sizes, seconds = zip(*points, strict=True)
        return float(np.interp(math.log(max(size, 1.0)), np.log(sizes), seconds))

    def gflops(self) -> float:
        """Of the fastest convolutions, in 10^9 FLOPs a second."""
        measured = (rate.seconds for rate in self.rates if rate.kind == "convolution" and rate.seconds)
        return max((1e-9 / seconds for seconds in measured), default=0.0)


class _Chain:
    """A graph of one node after the other.

    Attributes:
        shape: of its input.
        size: as `Rate.size`.
        flops: of all its nodes.
    """

    def __init__(self, *shape: int) -> None:
        self.shape, self.size, self.flops = shape, 0.0, 0
        self.nodes: list[NodeProto] = []
        self._weights: list[TensorProto] = []
        self._drawn = np.random.default_rng(0)

    def add(self, kind: str, weights: Sequence[Sequence[int]] = (), **attributes: Any) -> None:
        named = []
        for shape in weights:
            name, spread = f"weight_{len(self._weights)}", np.float32(1 / math.sqrt(math.prod(shape[1:])))
            values = self._drawn.standard_normal(shape, dtype=np.float32) * spread
            self._weights.append(numpy_helper.from_array(values, name))
            named.append(name)
        number = len(self.nodes)
        self.nodes.append(helper.make_node(kind, [f"value_{number}", *named], [f"value_{number + 1}"], **attributes))

    def seconds(self, seconds: float) -> Seconds:
        """Of a call."""
        free = [length if length > 1 else "batch" for length in self.shape]  # as of exported models
        shown = [helper.make_tensor_value_info("value_0", TensorProto.FLOAT, free)]
        last = [helper.make_tensor_value_info(f"value_{len(self.nodes)}", TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "layers", shown, last, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        runtime = open_session(model.SerializeToString())
        feed = {"value_0": self._drawn.standard_normal(self.shape, dtype=np.float32)}
        return float(np.median(call_seconds(partial(runtime.run, None, feed), seconds)))


def _linear(width: int, layers: int) -> _Chain:
    chain = _Chain(1, width)
    for _ in range(layers):
        chain.add("Gemm", [(width, width), (width,)])
        chain.add("Relu")
    chain.size, chain.flops = 4 * width * width * layers, 2 * width * width * layers
    return chain


def _product(width: int, layers: int) -> _Chain:
    chain = _Chain(1, PLACES, width)
    for _ in range(layers):
        chain.add("MatMul", [(width, width)])
        chain.add("Relu")
    chain.size, chain.flops = width, 2 * PLACES * width * width * layers
    return chain


def _convolution(channels: int, side: int, layers: int, groups: int = 1) -> _Chain:
    chain, inner = _Chain(1, channels, side, side), channels // groups
    for _ in range(layers):
        chain.add("Conv", [(channels, inner, 3, 3), (channels,)], pads=[1, 1, 1, 1], group=groups)
        chain.add("Relu")
    chain.size, chain.flops = channels, 2 * 9 * inner * channels * side * side * layers
    return chain


def _recurrent(width: int) -> _Chain:
    chain = _Chain(PLACES, 1, width)
    chain.add("GRU", [(1, 3 * width, width), (1, 3 * width, width)], hidden_size=width)
    chain.size, chain.flops = 4 * 6 * width * width, 2 * 6 * width * width * PLACES
    return chain


def _layers() -> list[tuple[Kind, _Chain]]:
    return [
        *(("linear", _linear(*each)) for each in ((32, 4), (128, 4), (512, 4), (1024, 4), (2048, 4))),
        *(("product", _product(*each)) for each in ((16, 4), (64, 4), (256, 2), (768, 1))),
        *(("convolution", _convolution(*each)) for each in ((4, 16, 4), (16, 16, 4), (64, 16, 3), (256, 8, 2))),
        *(("depthwise", _convolution(each, 16, 4, groups=each)) for each in (16, 128)),
        *(("recurrent", _recurrent(each)) for each in (4, 16, 64, 256, 768)),
    ]


def measure_machine(cpu: str, seconds: float = SECONDS) -> MachineSpeed:
    """Measure this machine: some twenty graphs.

    Args:
        cpu: the processor's name.
        seconds: for each graph.
    """
    nothing, small, large = _Chain(1, 16), _Chain(1, 4, 4), _Chain(1, 64, 64, 64)
    nothing.add("Identity")
    for _ in range(16):
        small.add("Transpose", perm=[0, 2, 1])
        small.add("Add", [(4, 4)])
    for _ in range(4):
        large.add("Sigmoid")
    call = nothing.seconds(seconds)
    node = max(0.0, small.seconds(seconds) - call) / len(small.nodes)
    byte = max(0.0, (large.seconds(seconds) - call) / len(large.nodes) - node) / (4 * math.prod(large.shape))
    rates = []
    for kind, chain in _layers():
        computing = max(0.0, chain.seconds(seconds) - call - node * len(chain.nodes) / 2)  # each Relu is fused
        rates.append(Rate(kind=kind, size=chain.size, seconds=computing / chain.flops))
    return MachineSpeed(cpu=cpu, onnxruntime=onnxruntime.__version__, call=call, node=node, byte=byte, rates=rates)

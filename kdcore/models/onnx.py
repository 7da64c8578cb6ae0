"""A teacher that is an ONNX file: onnxruntime computes it, nothing here knows its layers."""

import threading
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, StringConstraints
from torch import Tensor

from kdcore.errors import NO_MEMORY, TrainingError
from kdcore.models.base import BaseModelConfig, Network

SECONDS = 300.0
"""That one call may take: a batch."""
JOB_MEMORY = 16 * 2**30
"""Of a job with such a teacher, where its spec says nothing else: what the file takes, no plan knows."""
DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
}
SMALLEST = 1e-12
"""Of a probability, before its logarithm."""

LayerName = Annotated[str, StringConstraints(min_length=1, max_length=60)]
Shape = Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], Field(min_length=1, max_length=3)]


class OnnxConfig(BaseModelConfig):
    """A frozen teacher that is a file: `weights` name it, and onnxruntime computes it.

    The file has one input, which gets what the teacher's view gives, and its own weights: none in other files. Only
    standard operators run. Its size and FLOPs are not known before it is read; nothing of it is exported.
    """

    title: ClassVar[str] = "ONNX file"
    source: ClassVar[str] = "Open Neural Network Exchange, onnx.ai; onnxruntime, MIT"
    trainable: ClassVar[bool] = False

    type: Literal["onnx"] = "onnx"
    output: str | None = Field(default=None, min_length=1, max_length=200)
    """The output that holds the logits; left out: `logits`, or the first one."""
    gives: Literal["logits", "probabilities"] = "logits"
    """What that output holds; of probabilities the logarithm is taken."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """In which order it reads pictures: channels first or last."""
    hidden: dict[LayerName, Shape] = Field(default_factory=dict, max_length=12)
    """Other outputs that losses may name, with their shapes, without the batch."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        return OnnxNetwork(self, input_shape, self.classes or classes)

    def chosen(self, names: list[str]) -> str | None:
        """The output of these that holds the logits; None where there is no such one."""
        if self.output is not None:
            return self.output if self.output in names else None
        return "logits" if "logits" in names else names[0] if names else None


class OnnxNetwork(Network):
    """A network whose state is a file: loading that state starts onnxruntime.

    On the meta device it gives shapes and no numbers.

    Args:
        input_shape: of one sample, as `views` gets it: (C, H, W), (T, D), (D,) or (T,).
        classes: how many logits there are.
    """

    place: Tensor

    def __init__(self, config: OnnxConfig, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.config, self.input_shape = config, input_shape
        self.shapes = {**{name: tuple(shape) for name, shape in config.hidden.items()}, "logits": (classes,)}
        self.register_buffer("place", torch.empty(0), persistent=False)  # tells the device
        self.content = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._runtimes: dict[str, Any] = {}

    def get_extra_state(self) -> Tensor:
        return self.content

    def set_extra_state(self, state: Any) -> None:
        self.content, self._runtimes = state, {}

    def output_bias(self) -> None:
        return None

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        if inputs.is_meta:
            views = {name: inputs.new_empty(len(inputs), *shape, dtype=torch.float32) for name, shape in self._shapes()}
        else:
            views = self._answers(inputs)
        return views

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return list(self.shapes.items())

    def _answers(self, inputs: Tensor) -> dict[str, Tensor]:
        runtime = self._runtime(inputs.device.type)
        names = self._outputs(runtime)
        fed = self._fed(runtime, inputs)
        whole = runtime.get_inputs()[0].shape[0]
        size = whole if isinstance(whole, int) else len(fed)
        parts = [
            _run(runtime, list(names.values()), fed[start : start + size], size) for start in range(0, len(fed), size)
        ]
        views = {}
        for name, pieces in zip(names, zip(*parts, strict=True), strict=True):
            found = torch.from_numpy(np.concatenate(pieces)).float().to(inputs.device)
            if tuple(found.shape) != (len(inputs), *self.shapes[name]):
                raise _bad(f"its output {names[name]!r} has the shape {list(found.shape[1:])} of one sample, not"
                           f" {list(self.shapes[name])}")  # fmt: skip
            views[name] = found
        if self.config.gives == "probabilities":
            views["logits"] = views["logits"].clamp(min=SMALLEST).log()
        return views

    def _fed(self, runtime: Any, inputs: Tensor) -> Any:
        """(B, …) as the file reads it, a numpy array."""
        (read,) = runtime.get_inputs()
        values = inputs.detach().cpu()
        if self.config.layout == "nhwc" and values.ndim == 4:
            values = values.permute(0, 2, 3, 1)
        shape = list(values.shape[1:])
        if len(read.shape) != values.ndim or any(
            isinstance(own, int) and own != size for own, size in zip(read.shape[1:], shape, strict=True)
        ):
            raise _bad(
                f"it reads {read.shape[1:]} and the teacher's view gives {shape}; set the teacher's `view`, such as"
                " {type: picture, size: 224}, or `layout`"
            )
        dtype = DTYPES[read.type]
        if dtype == torch.uint8:
            values = values.round().clamp(0, 255)
        return values.to(dtype).contiguous().numpy()

    def _outputs(self, runtime: Any) -> dict[str, str]:
        """The file's outputs by the views that they are."""
        there = [each.name for each in runtime.get_outputs()]
        logits = self.config.chosen(there)
        for name in (logits or self.config.output, *self.config.hidden):
            if name not in there:
                raise _bad(f"it has no output {name!r}; it has {', '.join(there[:20])}")
        assert logits is not None
        return {**{name: name for name in self.config.hidden}, "logits": logits}

    def _runtime(self, device: str) -> Any:
        if device not in self._runtimes:
            self._runtimes[device] = _session(self.content, device, torch.get_num_threads())
        return self._runtimes[device]

    def call_of(self, batch: int) -> Callable[[], object]:
        """A call with so many samples of zeros on one CPU thread, to be timed."""
        runtime = _session(self.content, "cpu", 1)
        reads_words = DTYPES[runtime.get_inputs()[0].type] in (torch.int32, torch.int64)
        fed = self._fed(runtime, torch.zeros(batch, *self.input_shape, dtype=torch.int64 if reads_words else None))
        whole = runtime.get_inputs()[0].shape[0]
        size = whole if isinstance(whole, int) else batch
        return lambda: [_run(runtime, None, fed[start : start + size], size) for start in range(0, batch, size)]

    def size(self) -> dict[str, Any]:
        """Its parameters, FLOPs, which nobody counted, and bytes of its file."""
        import onnx

        model = onnx.load_model_from_string(self.content.numpy().tobytes())
        return {"parameters": numbers(model), "flops": None, "bytes": len(self.content)}


def numbers(model: Any) -> int:
    """How many floating-point weights an ONNX model holds."""
    real = (1, 10, 11, 16)  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
    constants = (part.t for node in model.graph.node if node.op_type == "Constant" for part in node.attribute)
    held = [each for each in (*model.graph.initializer, *constants) if each.data_type in real]
    return int(sum(np.prod(each.dims, dtype=np.int64) for each in held))


def _session(content: Tensor, device: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # what a batch took is given back
    options.add_session_config_entry("session.load_model_format", "ONNX")
    cuda = device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    providers = [*(["CUDAExecutionProvider"] if cuda else []), "CPUExecutionProvider"]
    try:
        runtime = onnxruntime.InferenceSession(content.numpy().tobytes(), options, providers=providers)
    except Exception as error:
        raise _failed(error) from None
    inputs = runtime.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in DTYPES:
        raise _bad(f"it has the inputs {[(each.name, each.type) for each in inputs][:9]}, a teacher has one of numbers")
    return runtime


def _run(runtime: Any, names: list[str] | None, fed: Any, size: int) -> list[Any]:
    """The outputs of at most `size` samples; filled up to it, which a file of a fixed batch needs, and cut again."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = threading.Timer(SECONDS, lambda: setattr(options, "terminate", True))
    timer.start()
    whole = fed if len(fed) == size else np.concatenate([fed, np.repeat(fed[:1], size - len(fed), 0)])
    try:
        found = runtime.run(names, {runtime.get_inputs()[0].name: whole}, options)
    except Exception as error:
        raise _failed(error) from None
    finally:
        timer.cancel()
    return [np.asarray(each)[: len(fed)] for each in found]


def _failed(error: Exception) -> Exception:
    text = str(error)
    if any(words in text.lower() for words in NO_MEMORY):
        return MemoryError(text[:300])
    if "terminate flag" in text:
        return _bad(f"a batch took it longer than {SECONDS:g} s; use a smaller batch_size")
    return _bad(f"onnxruntime cannot run it: {text[:300]}")


def _bad(why: str) -> TrainingError:
    return TrainingError("bad_teacher_weights", f"the ONNX teacher cannot be used: {why}")

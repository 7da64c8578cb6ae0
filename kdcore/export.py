"""A trained network as files that need nothing of this project: safetensors, torch.export, ONNX."""

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import ExportedProgram

from kdcore.data import DataFacts
from kdcore.errors import TrainingError, is_memory_error
from kdcore.inputs import Classifier, example_inputs
from kdcore.latency import session
from kdcore.models import FOREIGN
from kdcore.reporter import Interrupted
from kdcore.state import Weights

TOLERANCE = 1e-4
_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node")


def save_weights(path: Path, weights: Weights) -> None:
    """Bare weights as safetensors, under the names that whoever defined the network gave them.

    Equal weights give equal bytes.

    Raises:
        OSError: it could not be written.
    """
    path.write_bytes(_safetensors(weights))


def weights_digest(weights: Weights) -> str:
    """Of the file that `save_weights` writes, as `sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(_safetensors(weights)).hexdigest()}"


def _safetensors(weights: Weights) -> bytes:
    if all(name.startswith(FOREIGN) for name in weights):
        weights = {name.removeprefix(FOREIGN): value for name, value in weights.items()}
    # One metadata entry only: the order of several is not fixed.
    return save({name: value.contiguous() for name, value in sorted(weights.items())}, {"format": "pt"})


def trace(module: nn.Module, facts: DataFacts) -> ExportedProgram:
    """torch.export of a classifier, or of what comes before one, on the CPU, for any batch size.

    Args:
        facts: of what it reads.

    Raises:
        TrainingError: `export_failed`, kind system.
    """
    example = example_inputs(facts, 2)  # 0 and 1 would be taken for constants
    with quiet("torch.export"), torch.no_grad():
        shapes = ({0: torch.export.Dim("batch")},)
        return torch.export.export(module.eval(), (example,), dynamic_shapes=shapes)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write `.pt2`, without the traces that name files of this machine.

    Raises:
        TrainingError: `export_failed`, kind system.
        OSError: it could not be written.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for name in _TRACES:
                    node.meta.pop(name, None)
    # By way of memory: torch's own writer ends the process where the disk is full.
    content = io.BytesIO()
    with quiet("torch.export"):
        torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Write one self-contained ONNX file: `input` (batch, …) -> `logits` (batch, classes).

    Raises:
        TrainingError: `export_failed`, kind system.
        OSError: it could not be written.
    """
    onnx.save_model(to_onnx(program), str(path))


def to_onnx(program: ExportedProgram) -> onnx.ModelProto:
    """The same in memory, without the traces that name files of this machine.

    Raises:
        TrainingError: `export_failed`, kind system.
    """
    with quiet("torch.onnx"):
        exported = torch.onnx.export(
            program, (), dynamo=True, input_names=["input"], output_names=["logits"], verbose=False
        )
        assert exported is not None
        model = exported.model_proto
    _name_batch(model.graph)
    for graph in (model.graph, *model.functions):
        for part in (model, graph, *graph.node):
            del part.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    return model


def check(classifier: Classifier, program: ExportedProgram, onnx_path: Path, facts: DataFacts) -> None:
    """Compare both exports with the network, at batch 1 and others.

    Raises:
        TrainingError: `export_failed`, kind system: logits differ by more than 1e-4 (absolute plus relative).
    """
    runtime, module = session(onnx_path), program.module()
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 2, 7):
        inputs = example_inputs(facts, batch, generator)
        with torch.no_grad():
            wanted = classifier(inputs)
            _close("torch.export", module(inputs), wanted)
        _close("torch.onnx", torch.from_numpy(runtime.run(["logits"], {"input": inputs.numpy()})[0]), wanted)


def _close(what: str, found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE):
        raise TrainingError("export_failed", f"{what}: the exported model's logits are not the student's", "system")


def _name_batch(graph: onnx.GraphProto) -> None:
    """Call the free dimension `batch` wherever it stands, whatever the exporter called it."""
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == free:
                dimension.dim_param = "batch"


@contextlib.contextmanager
def quiet(what: str) -> Iterator[None]:
    """Exporters talk on standard output and in warnings; only their failure is of interest.

    Raises:
        TrainingError: `export_failed`, kind system.
    """
    chatter = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(chatter), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (TrainingError, OSError, Interrupted):
        raise
    except Exception as error:
        if is_memory_error(error):
            raise
        raise TrainingError("export_failed", f"{what} failed: {error}", "system") from error
    finally:
        logging.disable(before)

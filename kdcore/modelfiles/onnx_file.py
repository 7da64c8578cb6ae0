"""An ONNX file, looked through before onnxruntime sees it, and tried once in a process that can only do that."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx

from kdcore.modelfiles import onnx_trial
from kdcore.modelfiles.formats import ModelFileError, check_values, file_format
from kdcore.modelfiles.profile import ModelOptions, ModelProfile, ValueProfile
from kdcore.models.onnx import OnnxConfig, numbers

LARGEST = 2**31 - 2**24
"""Bytes: what an ONNX file can hold by itself."""
DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
"""Of the operators that the standard defines."""
TRIAL_SECONDS, TRIAL_MEMORY, TRIAL_COPIES = 120, 4 * 2**30, 4
"""Of one sample; the address space grows with the file."""
WAITING_SECONDS = 360
"""For that process on a busy machine; `TRIAL_SECONDS` are of its own work."""
LOADER = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Each of numpy's threads takes of the address space."""
MOST_NODES = 1_000_000


def read_onnx(path: Path) -> tuple[bytes, onnx.ModelProto]:
    """An ONNX file and what it says.

    Raises:
        ModelFileError: it is none, too large, keeps weights in other files, or has operators outside the standard.
        OSError: it could not be read.
    """
    if (kind := file_format(path)) != "onnx":
        raise ModelFileError(f"it is a {kind} file and no ONNX file; name the architecture whose weights it holds")
    if path.stat().st_size > LARGEST:
        raise ModelFileError("it is larger than 2 GiB, which is all an ONNX file can hold")
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except MemoryError:
        raise
    except Exception as error:  # protobuf has a type of its own for it
        raise ModelFileError(f"it is a damaged ONNX file ({error}); export it again") from None
    _check_parts(model)
    return content, model


def _check_parts(model: onnx.ModelProto) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    graphs = [model.graph, *(part for info in model.training_info for part in (info.initialization, info.algorithm))]
    defaults = [attribute for each in model.functions for attribute in each.attribute_proto]
    graphs += [inner for attribute in defaults for inner in (attribute.g, *attribute.graphs)]
    nodes = [node for graph in graphs for node in graph.node] + [n for each in model.functions for n in each.node]
    tensors = [tensor for graph in graphs for tensor in _initializers(graph)]
    for seen, node in enumerate(_all_nodes(nodes)):
        if seen > MOST_NODES:
            raise ModelFileError(f"it has more than {MOST_NODES:,} operators")
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise ModelFileError(
                f"the operator {node.domain}.{node.op_type} is outside the ONNX standard, and nothing that it would"
                " need is loaded; export the model with standard operators only"
            )
        tensors += _tensors(node.attribute)
    tensors += _tensors(defaults)
    for tensor in tensors:
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelFileError(
                f"the weights {tensor.name[:100]!r} are in another file, and no path in a model is followed; save it as"
                " one file, `onnx.save_model(onnx.load(path), 'model.onnx')`"
            )


def _tensors(attributes: Iterable[onnx.AttributeProto]) -> list[onnx.TensorProto]:
    found: list[onnx.TensorProto] = []
    for attribute in attributes:
        found += [attribute.t, *attribute.tensors]
        found += [part for each in (attribute.sparse_tensor, *attribute.sparse_tensors) for part in _parts(each)]
        found += [tensor for graph in (attribute.g, *attribute.graphs) for tensor in _initializers(graph)]
    return found


def _all_nodes(nodes: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These and those of the graphs inside them."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += [inner for graph in (attribute.g, *attribute.graphs) for inner in graph.node]


def _initializers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [*graph.initializer, *(part for each in graph.sparse_initializer for part in _parts(each))]


def _parts(sparse: onnx.SparseTensorProto) -> list[onnx.TensorProto]:
    return [sparse.values, sparse.indices]


def check_onnx(path: Path, options: ModelOptions, poll: Callable[[], object]) -> ModelProfile:
    """`check_model` of an ONNX file: what it holds, and one sample of zeros through it.

    Raises:
        ModelFileError: as `read_onnx`; or it does not run within its limits, or its outputs are not those it should
            have.
    """
    config = options.model or OnnxConfig()
    if not isinstance(config, OnnxConfig):
        raise ModelFileError(f"it is an ONNX file, not the weights of a {config.type}; leave `model` out")
    content, model = read_onnx(path)
    poll()
    found = _tried(path, options, len(content), poll)
    check_values([(each["name"], each["shape"]) for each in (*found["inputs"], *found["outputs"])])
    names = [each["name"] for each in found["outputs"]]
    wanted = config.chosen(names)
    if wanted is None:
        raise ModelFileError(f"it has no output {config.output!r}; it has {', '.join(names[:20])}")
    logits = found["outputs"][names.index(wanted)]
    if not logits["finite"]:
        raise ModelFileError(f"its output {wanted!r} is not finite for a sample of zeros; export it again")
    if options.classes is not None and logits["found"][1:] != [len(options.classes)]:
        raise ModelFileError(
            f"its output {wanted!r} has the shape {logits['found']}, and `classes` has {len(options.classes)} names"
        )
    return ModelProfile(
        format="onnx",
        bytes=len(content),
        parameters=numbers(model),
        tensors=len(model.graph.initializer),
        model=config,
        classes=options.classes,
        opset=max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=None),
        inputs=[_value(each) for each in found["inputs"]],
        outputs=[_value(each) for each in found["outputs"]],
    )


def _value(found: dict[str, Any]) -> ValueProfile:
    return ValueProfile.model_validate({key: found[key] for key in ("name", "dtype", "shape")})


def _tried(path: Path, options: ModelOptions, size: int, poll: Callable[[], object]) -> dict[str, list[dict[str, Any]]]:
    """What a process of its own found: it has a limit of time and of memory, and may write no file."""
    shape = json.dumps(options.input_shape)
    memory = TRIAL_MEMORY + TRIAL_COPIES * size
    command = [sys.executable, "-I", onnx_trial.__file__, str(path), shape, str(memory), str(TRIAL_SECONDS)]
    status, answer, complaint = _finished(command, poll)
    if status == onnx_trial.REFUSED:
        raise ModelFileError(f"onnxruntime cannot run it: {complaint.strip()[-500:]}")
    if status != 0:
        limits = f"{TRIAL_SECONDS} s and {memory / 2**30:.1f} GiB"
        raise ModelFileError(f"one sample needs more than there is for it, {limits}, or breaks onnxruntime")
    found: dict[str, list[dict[str, Any]]] = json.loads(answer)
    return found


def _finished(command: list[str], poll: Callable[[], object]) -> tuple[int, str, str]:
    """Status, standard output and standard error of a process that ends, at the latest, when its time is over.

    Of this one's environment, where a worker has its secrets, it gets what finds libraries.
    """
    kept = {name: os.environ[name] for name in LOADER if name in os.environ}
    end = time.monotonic() + WAITING_SECONDS
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=kept | ONE_THREAD, **pipes) as process:
        try:
            while time.monotonic() < end:
                poll()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    answer, complaint = process.communicate(timeout=0.5)
                    return process.returncode, answer, complaint
            raise ModelFileError(f"one sample took longer than {WAITING_SECONDS} s")
        finally:
            process.kill()

"""A traced classifier as plain torch code, for a reader who has nothing of this project."""

import operator

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch.export import ExportedProgram
from torch.fx import Node

from kdcore.models import FOREIGN

NETWORK, NORMALISE = "network.", "normalise."
"""The parts of a `Classifier`."""


def plain_function(program: ExportedProgram) -> str:
    """Source of `student(input)`, from [0, 1] to logits.

    It reads two globals: `weights`, by the names in `student.safetensors`, and `channel` with
    `mean` and `std`, ready to broadcast.

    Args:
        program: `export.trace` of a `Classifier`.

    Raises:
        ValueError: the network holds a constant that is not among its weights.
    """
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    known: dict[Node, str] = {}
    lines = ["def student(input):"]
    for node in program.graph.nodes:
        if node.op == "placeholder":
            known[node] = _source(names[node.name]) if node.name in names else _input(program, node)
        elif node.op == "output":
            lines.append(f"    return {known[node.args[0][0]]}")
        elif _is_identity(node):
            known[node] = known[node.args[0]]
        else:
            known[node] = node.name
            lines.append(f"    {node.name} = {_call(node, known)}")
    return "\n".join(lines)


def _source(name: str) -> str:
    if name.startswith(NORMALISE):
        return f'channel["{name.removeprefix(NORMALISE)}"]'
    return f'weights["{name.removeprefix(NETWORK).removeprefix(FOREIGN)}"]'


def _input(program: ExportedProgram, node: Node) -> str:
    if node.name not in program.graph_signature.user_inputs:
        raise ValueError(f"{node.name} is a constant that is not among the weights")
    return "input"


def _is_identity(node: Node) -> bool:
    """Dropout does nothing in eval mode."""
    return node.target is torch.ops.aten.dropout.default


def _call(node: Node, known: dict[Node, str]) -> str:
    arguments = [_text(value, known) for value in node.args]
    if node.target is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    arguments += [f"{name}={_text(value, known)}" for name, value in node.kwargs.items()]
    return f"{_function(node)}({', '.join(arguments)})"


def _function(node: Node) -> str:
    """The usual name of an aten operator, where torch has one of the same arguments."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload), target
    name = target._schema.name.removeprefix("aten::")
    if hasattr(torch, name):
        return f"torch.{name}"
    return f"F.{name}" if hasattr(F, name) else f"torch.ops.aten.{name}.{target._overloadname}"


def _text(value: object, known: dict[Node, str]) -> str:
    if isinstance(value, Node):
        return known[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(part, known) for part in value)}]"
    return repr(value)

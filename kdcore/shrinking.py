"""A model of the catalogue made thinner: fewer layers, fewer channels, all else as it is."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kdcore.models import BaseModelConfig, ModelError
from kdcore.models.resnet import LARGE
from kdcore.models.vgg import STAGES

T = TypeVar("T")
CHANGES: dict[str, Callable[[Any, float, float], dict[str, Any]]] = {}


def shrunk(model: BaseModelConfig, width: float, depth: float) -> BaseModelConfig:
    """The same family with `width` times the channels and `depth` times the layers, each rounded, at least 1.

    Raises:
        ModelError: `of`, `width` or `depth`: this family, or this model, cannot be made thinner that way.
    """
    if model.type not in CHANGES:
        known = ", ".join(CHANGES)
        raise ModelError("of", f"a {model.type} cannot be made thinner, only {known}; name the student's `model`")
    return type(model).model_validate({**model.model_dump(), **CHANGES[model.type](model, width, depth)})


def family(*names: str) -> Callable[[Callable[[Any, float, float], dict[str, Any]]], None]:
    """Under which types a change of fields is listed."""

    def note(change: Callable[[Any, float, float], dict[str, Any]]) -> None:
        CHANGES.update(dict.fromkeys(names, change))

    return note


def fewer(count: int, share: float, field: str, what: str) -> int:
    """`share` of `count`, rounded, at least 1; an error where that is no less though it should be."""
    kept = max(1, int(count * share + 0.5))
    if share < 1 and kept >= count:
        raise ModelError(field, f"{share:g} of {count} {what} is {kept}, no less than the teacher has; use less, or 1")
    return kept


def whole(share: float, field: str, why: str) -> None:
    """Raise `ModelError` unless that side of the model stays as it is."""
    if share != 1:
        raise ModelError(field, f"{why}; leave `{field}` out")


def every_kth(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at equal distances, the first one among them."""
    return [items[place * len(items) // count] for place in range(count)]


def thinner(widths: Sequence[int], share: float) -> list[int]:
    return [max(1, int(each * share + 0.5)) for each in widths]


@family("mlp")
def _mlp(model: Any, width: float, depth: float) -> dict[str, Any]:
    if not model.hidden:
        raise ModelError("of", "the teacher has no hidden layer to make thinner; name the student's `model`")
    kept = every_kth(model.hidden, fewer(len(model.hidden), depth, "depth", "hidden layers"))
    return {"hidden": thinner(kept, width)}


@family("cnn")
def _cnn(model: Any, width: float, depth: float) -> dict[str, Any]:
    kept = every_kth(model.channels, fewer(len(model.channels), depth, "depth", "convolutions"))
    return {"channels": thinner(kept, width), "hidden": thinner(model.hidden, width)}


@family("resnet")
def _resnet(model: Any, width: float, depth: float) -> dict[str, Any]:
    if model.form == "cifar":
        blocks = fewer((model.depth - 2) // 6, depth, "depth", "blocks in a stage")
        return {"depth": 6 * blocks + 2, "width": fewer(model.width, width, "width", "times 16 channels")}
    whole(width, "width", "the imagenet form has one width")
    kind, counts = LARGE.get(model.depth, ("", (0,)))
    most = sum(counts) if depth == 1 else fewer(sum(counts), depth, "depth", "blocks")
    fits = [each for each, (like, blocks) in LARGE.items() if like == kind and sum(blocks) <= most]
    if not fits:
        raise ModelError("depth", f"no resnet of {kind} blocks is as shallow as {most} blocks; name the `model`")
    return {"depth": max(fits)}


@family("wide_resnet")
def _wide_resnet(model: Any, width: float, depth: float) -> dict[str, Any]:
    blocks = fewer((model.depth - 4) // 6, depth, "depth", "blocks in a stage")
    return {"depth": 6 * blocks + 4, "width": fewer(model.width, width, "width", "times 16 channels")}


@family("vgg")
def _vgg(model: Any, width: float, depth: float) -> dict[str, Any]:
    whole(width, "width", "a vgg has one width")
    count = sum(STAGES[model.depth])
    most = max(sum(min(STAGES.values())), fewer(count, depth, "depth", "convolutions"))
    if depth < 1 and most >= count:
        raise ModelError("depth", f"there is no vgg with less than {count} convolutions; leave `depth` out")
    return {"depth": max(each for each, counts in STAGES.items() if sum(counts) <= most)}


@family("mobilenet_v2")
def _mobilenet(model: Any, width: float, depth: float) -> dict[str, Any]:
    whole(depth, "depth", "a mobilenet_v2 has one depth")
    if model.width * width < 0.1:
        raise ModelError("width", f"{width:g} of the teacher's width {model.width:g} is below 0.1; use more")
    return {"width": model.width * width}


@family("shufflenet")
def _shufflenet(model: Any, width: float, depth: float) -> dict[str, Any]:
    whole(depth, "depth", "a shufflenet has one depth")
    if model.version == 1:
        whole(width, "width", "version 1 has one width")
    return {"width": fewer(int(model.width * 2), width, "width", "times half of its channels") / 2}


@family("vit", "text_transformer")
def _transformer(model: Any, width: float, depth: float) -> dict[str, Any]:
    each = fewer(model.width // model.heads, width, "width", "numbers for each head")
    layers = fewer(model.layers, depth, "depth", "layers")
    return {"width": each * model.heads, "mlp": thinner([model.mlp], width)[0], "layers": layers}


@family("lstm", "gru")
def _recurrent(model: Any, width: float, depth: float) -> dict[str, Any]:
    embedding, hidden = thinner([model.embedding, model.hidden], width)
    return {"embedding": embedding, "hidden": hidden, "layers": fewer(model.layers, depth, "depth", "layers")}


@family("text_cnn")
def _text_cnn(model: Any, width: float, depth: float) -> dict[str, Any]:
    whole(depth, "depth", "a text_cnn has one layer")
    embedding, channels = thinner([model.embedding, model.channels], width)
    return {"embedding": embedding, "channels": channels}

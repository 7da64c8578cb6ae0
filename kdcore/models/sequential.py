"""A network as a list of layers, each as wide as what comes in."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, ModelError, Network
from kdcore.models.dropout import Dropout
from kdcore.models.layer_base import LayerConfig
from kdcore.models.layer_list import DropoutConfig, EmbeddingConfig, FlattenConfig, LinearConfig, RecurrentLayerConfig
from kdcore.models.layer_modules import run
from kdcore.models.layer_nesting import NESTED, Layer, RepeatConfig, build_list
from kdcore.models.sequences import places_of

MOST_LAYERS, MOST_RECURRENT, DEEPEST = 256, 16, 4
"""Of all lists together, repeats counted; of them lstm and gru; lists within each other."""


class SequentialConfig(BaseModelConfig):
    """Layers one after the other, on pictures, sequences, vectors or, after an `embedding`, texts.

    Where the list does not end in a `linear` layer with one number for each class, such a layer is added.
    Views: what each layer of the list gives, by its `name` or its type and place (`conv2d_1`, `residual_4`), but for
    `dropout` and `flatten` without a name; and `logits`. A sequence is a view (channels, places, 1).
    """

    title: ClassVar[str] = "A list of layers"
    source: ClassVar[str] = "torch.nn.Sequential; residual: He, Zhang, Ren, Sun, arXiv 1512.03385, section 3.2"

    type: Literal["sequential"] = "sequential"
    layers: list[Layer] = Field(min_length=1, max_length=MOST_LAYERS)
    """In order; with those in `residual` and `repeat` at most 256, at most 16 of them recurrent."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        check_size(self.layers)
        outputs, is_text = self.classes or classes, vocabulary is not None
        first = self.layers[0]
        embedding, shape, begin = None, input_shape, 0
        if vocabulary is not None:
            if not isinstance(first, EmbeddingConfig):
                raise ModelError("layers", "a model on texts begins with an embedding layer", 0, "type")
            embedding, shape, begin = first.embed(vocabulary), (*input_shape, first.width), 1
        last = self.layers[-1]
        ended = isinstance(last, LinearConfig) and last.features in (None, outputs) and len(self.layers) > begin
        inner = self.layers[begin : len(self.layers) - ended]
        layers, shapes = build_list(inner, shape, ("layers",), begin)
        width = (shapes or [shape])[-1]
        if len(width) != 1:
            message = f"the layers end in {width}; add global_pool or flatten, so that a linear layer can decide"
            raise ModelError("layers", message, len(self.layers) - 1, "type")
        head = nn.Linear(width[0], outputs, bias=last.bias if isinstance(last, LinearConfig) and ended else True)
        names = view_names(self.layers[: len(self.layers) - ended])
        if ended and last.name not in (None, "logits"):
            raise ModelError("layers", "what the last layer gives is called logits", len(self.layers) - 1, "name")
        return Sequential([embedding, *layers] if embedding is not None else layers, names, head, is_text=is_text)


class Sequential(Network):
    """Args: `layers` with the `names` of their views, None where a layer has none; `head` makes the logits."""

    def __init__(
        self, layers: Sequence[nn.Module], names: Sequence[str | None], head: nn.Linear, *, is_text: bool
    ) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(layers), head
        self.names, self.is_text = names, is_text

    def norm_before(self, layer: str) -> nn.BatchNorm2d | None:
        found = dict(zip(self.names, self.layers, strict=True)).get(layer)
        return found if isinstance(found, nn.BatchNorm2d) else None

    def output_bias(self) -> nn.Parameter | None:
        return self.head.bias

    def classifier(self) -> tuple[str, nn.Module] | None:
        between: list[nn.Module] = [self.head]
        for name, layer in reversed(list(zip(self.names, self.layers, strict=True))):
            if name is not None:
                return name, nn.Sequential(*between)
            if not isinstance(layer, Dropout):
                return None  # a flatten: the view before it may have another order
        return None

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        present = places_of(inputs, self.is_text) if self.is_text else None  # (B, T)
        features = inputs
        for name, layer in zip(self.names, self.layers, strict=True):
            features = run([layer], features, present)
            if name is not None:  # (B, T, D) -> (B, D, T, 1)
                views[name] = features.transpose(1, 2).unsqueeze(3) if features.ndim == 3 else features
        views["logits"] = self.head(features)
        return views


def check_size(layers: Sequence[LayerConfig], deep: int = 1) -> None:
    """Raise `ModelError` where there are too many layers, or lists within lists; before anything is built."""
    if deepest(layers) > DEEPEST:
        raise ModelError("layers", f"lists of layers lie within each other; at most {DEEPEST} deep")
    every, recurrent = count(layers)
    if every > MOST_LAYERS:
        raise ModelError("layers", f"{every:,} layers, repeats counted, are too many; use at most {MOST_LAYERS}")
    if recurrent > MOST_RECURRENT:
        raise ModelError("layers", f"{recurrent} recurrent layers are too many; use at most {MOST_RECURRENT}")


def deepest(layers: Sequence[LayerConfig]) -> int:
    inner = [deepest([*each.layers, *getattr(each, "shortcut", [])]) for each in layers if isinstance(each, NESTED)]
    return 1 + max(inner, default=0)


def count(layers: Sequence[LayerConfig]) -> tuple[int, int]:
    """All layers, and the recurrent ones among them."""
    every = recurrent = 0
    for each in layers:
        times = each.times if isinstance(each, RepeatConfig) else 1
        inner = [*each.layers, *getattr(each, "shortcut", [])] if isinstance(each, NESTED) else []
        below = count(inner) if inner else (0, 0)
        every += 1 + times * below[0]
        recurrent += isinstance(each, RecurrentLayerConfig) + times * below[1]
    return every, recurrent


def view_names(layers: Sequence[LayerConfig]) -> list[str | None]:
    """Of each layer's output; None of what is no view."""
    names: list[str | None] = []
    for place, layer in enumerate(layers):
        hidden = isinstance(layer, (DropoutConfig, FlattenConfig)) and layer.name is None
        name = layer.name or f"{layer.type}_{place + 1}"
        if name == "logits" or name in names:
            raise ModelError("layers", f"{name!r} names another view; choose another", place, "name")
        names.append(None if hidden else name)
    return names

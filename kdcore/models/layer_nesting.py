"""Lists of layers within layers, and how a list becomes modules: each for what the one before it gives."""

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from kdcore.config import Loc
from kdcore.models.base import ModelError
from kdcore.models.layer_activations import (
    GELUConfig,
    HardswishConfig,
    LeakyReLUConfig,
    ReLUConfig,
    SigmoidConfig,
    SiLUConfig,
    TanhConfig,
)
from kdcore.models.layer_base import LayerConfig, Shape
from kdcore.models.layer_list import (
    AvgPoolConfig,
    BatchNormConfig,
    Conv1dConfig,
    Conv2dConfig,
    DropoutConfig,
    EmbeddingConfig,
    FlattenConfig,
    GlobalPoolConfig,
    GroupNormConfig,
    GRULayerConfig,
    LayerNormConfig,
    LinearConfig,
    LSTMLayerConfig,
    MaxPoolConfig,
)
from kdcore.models.layer_modules import Chain, Residual, run


class ResidualConfig(LayerConfig):
    """Layers, and what came in added to what they make."""

    type: Literal["residual"] = "residual"
    layers: list["Layer"] = Field(min_length=1, max_length=64)
    shortcut: list["Layer"] = Field(default_factory=list, max_length=64)
    """Layers on the way past, where the shape changes; none: what came in as it is."""


class RepeatConfig(LayerConfig):
    """The same list of layers several times, each time with weights of its own."""

    type: Literal["repeat"] = "repeat"
    times: int = Field(ge=1, le=64)
    layers: list["Layer"] = Field(min_length=1, max_length=64)


Layer = Annotated[
    Conv2dConfig
    | Conv1dConfig
    | LinearConfig
    | BatchNormConfig
    | LayerNormConfig
    | GroupNormConfig
    | ReLUConfig
    | LeakyReLUConfig
    | GELUConfig
    | SiLUConfig
    | HardswishConfig
    | TanhConfig
    | SigmoidConfig
    | MaxPoolConfig
    | AvgPoolConfig
    | GlobalPoolConfig
    | DropoutConfig
    | FlattenConfig
    | EmbeddingConfig
    | LSTMLayerConfig
    | GRULayerConfig
    | ResidualConfig
    | RepeatConfig,
    Field(discriminator="type"),
]
ResidualConfig.model_rebuild()
RepeatConfig.model_rebuild()


NESTED = (ResidualConfig, RepeatConfig)


def build_list(
    layers: Iterable[LayerConfig], shape: Shape, loc: Loc, begin: int = 0
) -> tuple[list[nn.Module], list[Shape]]:
    """The modules of a list on the current default device, and the shape of what each gives, without the batch.

    Raises:
        ModelError: its `loc` begins with `loc` and leads to the layer.
    """
    modules, shapes = [], []
    for place, layer in enumerate(layers, start=begin):
        module, shape = build_layer(layer, shape, (*loc, place))
        modules.append(module)
        shapes.append(shape)
    return modules, shapes


def build_layer(layer: LayerConfig, shape: Shape, loc: Loc) -> tuple[nn.Module, Shape]:
    """See `build_list`."""
    if isinstance(layer, NESTED):
        refuse_names(layer, loc)
    if isinstance(layer, ResidualConfig):
        main, after = build_list(layer.layers, shape, (*loc, "layers"))
        past, carried = build_list(layer.shortcut, shape, (*loc, "shortcut"))
        if after[-1] != (carried or [shape])[-1]:
            message = f"the layers give {after[-1]}, the shortcut {(carried or [shape])[-1]}; they must be alike"
            raise error_at((*loc, "shortcut"), message)
        return Residual(main, past), after[-1]
    if isinstance(layer, RepeatConfig):
        chain: list[nn.Module] = []
        for _ in range(layer.times):
            modules, shapes = build_list(layer.layers, shape, (*loc, "layers"))
            chain += modules
            shape = shapes[-1]
        return Chain(chain), shape
    try:
        with torch.device("meta"), torch.no_grad():
            seen = run([layer.make(shape).eval()], torch.empty(2, *shape), None)
        return layer.make(shape), tuple(seen.shape[1:])
    except ModelError as error:
        raise error_at((*loc, *error.loc), str(error)) from None
    except RuntimeError as error:
        raise error_at((*loc, "type"), f"cannot read {shape}: {str(error).partition(chr(10))[0]}") from None


def refuse_names(layer: LayerConfig, loc: Loc) -> None:
    """Raise `ModelError` where a layer within another one has a name."""
    for field in ("layers", "shortcut"):
        for place, each in enumerate(getattr(layer, field, [])):
            if each.name is not None:
                raise error_at((*loc, field, place, "name"), "only a layer of the model's own list gives a view")


def error_at(loc: Loc, message: str) -> ModelError:
    """A `ModelError` at a path."""
    field, *inner = loc
    return ModelError(str(field), message, *inner)

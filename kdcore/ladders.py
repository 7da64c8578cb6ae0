"""Ladders of models: of each family some members from small to large, to find the largest one that fits a budget."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal

import torch

from kdcore.data import DataFacts
from kdcore.models import MODELS, BaseModelConfig, ModelError

Family = Literal[
    "mlp", "cnn", "resnet", "wide_resnet", "vgg", "mobilenet_v2", "shufflenet", "vit", "lstm", "gru", "text_cnn",
    "text_transformer",
]  # fmt: skip
STEPS = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
"""Each a half or a third more than the one before."""
TRANSFORMERS = [(16, 2), (32, 2), (64, 2), (64, 4), (128, 4), (192, 4), (256, 6), (384, 6), (512, 8), (768, 12)]
LADDERS: Mapping[Family, Sequence[dict[str, Any]]] = {
    "mlp": [{"hidden": [width] * layers} for width, layers in product(STEPS, (1, 2))],
    "cnn": [{"channels": [width, 2 * width], "hidden": [4 * width]} for width in STEPS[:15]],
    "resnet": [
        {"form": "cifar", "depth": depth, "width": width} for width, depth in product((1, 2, 4), (8, 14, 20, 32, 56))
    ],
    "wide_resnet": [{"depth": depth, "width": width} for width, depth in product((1, 2, 4, 8), (10, 16, 22, 28, 40))],
    "vgg": [{"depth": depth} for depth in (8, 11, 13, 16, 19)],
    "mobilenet_v2": [{"width": width} for width in (0.1, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 1.4)],
    "shufflenet": [{"version": 2, "width": width} for width in (0.5, 1.0, 1.5, 2.0)],
    "vit": [{"width": width, "layers": layers, "heads": 4, "mlp": 2 * width} for width, layers in TRANSFORMERS],
    "lstm": [{"embedding": width, "hidden": width} for width in STEPS[:19]],
    "gru": [{"embedding": width, "hidden": width} for width in STEPS[:19]],
    "text_cnn": [{"embedding": width, "channels": width} for width in STEPS[:19]],
    "text_transformer": [
        {"width": width, "layers": layers, "heads": 4, "mlp": 2 * width} for width, layers in TRANSFORMERS
    ],
}
TYPES = {each.model_fields["type"].default: each for each in MODELS}


def usual_families(facts: DataFacts) -> list[Family]:
    """What usually reads such data, the best first."""
    if facts.vocabulary is not None or len(facts.input_shape) == 2:
        return ["gru", "text_cnn"]
    if len(facts.input_shape) == 3:
        return ["resnet", "cnn", "mlp"] if min(facts.input_shape[1:]) >= 16 else ["cnn", "mlp"]
    return ["mlp"]


def members(family: Family, like: BaseModelConfig | None, facts: DataFacts) -> list[tuple[int, BaseModelConfig]]:
    """The members of a family that read this data, by their parameters.

    Args:
        like: a model, perhaps of this family: then what the ladder leaves open is as it has it.

    Raises:
        ModelError: none of them reads this data.
    """
    given = like.model_dump() if like is not None and like.type == family else {}
    found: list[tuple[int, BaseModelConfig]] = []
    refused: ModelError | None = None
    for rung in LADDERS[family]:
        config = TYPES[family].model_validate({**given, "classes": None, **rung})
        try:
            with torch.device("meta"):
                network = config.build(facts.input_shape, len(facts.classes), facts.vocabulary)
        except ModelError as error:
            refused = error
            continue
        found.append((sum(parameter.numel() for parameter in network.parameters()), config))
    if not found and refused is not None:
        raise refused
    return sorted(found, key=lambda each: each[0])

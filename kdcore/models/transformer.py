"""Transformer encoders: on a text's words, and on the patches of a picture."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, ModelError, Network, refuse_texts
from kdcore.models.dropout import Dropout
from kdcore.models.layers import check_picture
from kdcore.models.sequences import Embedding, check_sequence, masked_mean, places_of


class TransformerConfig(BaseModelConfig):
    """Base of both families."""

    width: int = Field(default=128, ge=1, le=8192)
    """Numbers for each place; a multiple of `heads`."""
    layers: int = Field(default=4, ge=1, le=64)
    """Each of an attention and a hidden layer."""
    heads: int = Field(default=4, ge=1, le=128)
    """Attentions side by side in each layer."""
    mlp: int = Field(default=256, ge=1, le=65_536)
    """Width of the hidden layer between two attentions."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """After the places are added, and after every attention and hidden layer."""

    def check_heads(self) -> None:
        """Raise `ModelError` unless the width can be shared out."""
        if self.width % self.heads:
            raise ModelError("heads", f"{self.heads} heads cannot share a width of {self.width}; use a divisor of it")


class TextTransformerConfig(TransformerConfig):
    """A pre-norm Transformer encoder on a text's words or a sequence of vectors; the mean over its places decides.

    Places are learned. Views: `layer_1`, … (channels, places, 1), `pooled` and `logits`.
    """

    title: ClassVar[str] = "Transformer encoder for texts"
    source: ClassVar[str] = (
        "Vaswani et al.: Attention Is All You Need, NeurIPS 2017, arXiv 1706.03762; normalised first: Xiong et al.,"
        " arXiv 2002.04745"
    )

    type: Literal["text_transformer"] = "text_transformer"

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        check_sequence(input_shape, vocabulary, self.type)
        self.check_heads()
        return TextTransformer(self, input_shape, self.classes or classes, vocabulary)


class ViTConfig(TransformerConfig):
    """A Transformer encoder on the patches of a picture, with a class token; ViT-B/16 is {patch: 16, width: 768,
    layers: 12, heads: 12, mlp: 3072}.

    Views: `layer_1`, … (channels, rows, columns) of the patches, `pooled` (the class token) and `logits`.
    """

    title: ClassVar[str] = "Vision Transformer"
    source: ClassVar[str] = "Dosovitskiy et al.: An Image is Worth 16x16 Words, ICLR 2021, arXiv 2010.11929"

    type: Literal["vit"] = "vit"
    patch: int = Field(default=4, ge=1, le=64)
    """Pixels of a patch, each way; a divisor of the picture's height and width."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        check_picture(input_shape, self.type, least=1)
        self.check_heads()
        if input_shape[1] % self.patch or input_shape[2] % self.patch:
            size = f"{input_shape[1]}x{input_shape[2]}"
            raise ModelError("patch", f"{self.patch} pixels do not divide {size}; use a divisor of both")
        return ViT(self, input_shape, self.classes or classes)


class Encoder(nn.Module):
    """One layer: attention, then two dense layers, each on normalised features and added to them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(config.width, eps=1e-6), nn.LayerNorm(config.width, eps=1e-6)
        self.attend = nn.Linear(config.width, 3 * config.width)
        self.mix = nn.Linear(config.width, config.width)
        self.dense = nn.Sequential(
            nn.Linear(config.width, config.mlp),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(config.mlp, config.width),
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, D), and where it may look: (B, 1, 1, T) bool or None -> (B, T, D)."""
        batch, places, width = features.shape
        shape = (batch, places, 3, self.heads, width // self.heads)
        query, key, value = self.attend(self.norm1(features)).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, heads, T, D / heads)
        features = features + self.dropout(self.mix(seen.transpose(1, 2).reshape(batch, places, width)))
        added: Tensor = features + self.dropout(self.dense(self.norm2(features)))
        return added


class TextTransformer(Network):
    def __init__(
        self, config: TextTransformerConfig, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, config.width) if vocabulary is not None else None
        self.project = nn.Linear(input_shape[1], config.width) if vocabulary is None else None
        self.places = nn.Parameter(torch.empty(input_shape[0], config.width).normal_(std=0.02))
        self.layers = nn.ModuleList(Encoder(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.width, classes)

    def classifier(self) -> tuple[str, nn.Module]:
        return "pooled", self.head

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        present = places_of(inputs, self.embedding is not None)  # (B, T)
        read = self.embedding if self.embedding is not None else self.project
        assert read is not None
        features = self.dropout(read(inputs) + self.places)  # (B, T, D)
        mask = (present > 0)[:, None, None, :] if self.embedding is not None else None
        for number, layer in enumerate(self.layers, start=1):
            features = layer(features, mask)
            views[f"layer_{number}"] = features.transpose(1, 2).unsqueeze(3)  # (B, T, D) -> (B, D, T, 1)
        views["pooled"] = masked_mean(self.norm(features), present)
        views["logits"] = self.head(views["pooled"])
        return views


class ViT(Network):
    def __init__(self, config: ViTConfig, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.rows, self.columns = height // config.patch, width // config.patch
        self.patches = nn.Conv2d(channels, config.width, config.patch, stride=config.patch)
        self.token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.places = nn.Parameter(torch.empty(1, self.rows * self.columns + 1, config.width).normal_(std=0.02))
        self.layers = nn.ModuleList(Encoder(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.width, classes)

    def classifier(self) -> tuple[str, nn.Module]:
        return "pooled", self.head

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        patches = self.patches(inputs).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, patches, D)
        features = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], 1)
        features = self.dropout(features + self.places)
        for number, layer in enumerate(self.layers, start=1):
            features = layer(features, None)
            views[f"layer_{number}"] = features[:, 1:].transpose(1, 2).unflatten(2, (self.rows, self.columns))
        views["pooled"] = self.norm(features)[:, 0]
        views["logits"] = self.head(views["pooled"])
        return views

"""Maps of two sizes, made comparable place by place."""

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor


def check_maps(*features: Tensor) -> None:
    """Raise `ValueError` unless each is (B, C, H, W) and all have one B."""
    for feature in features:
        if feature.dim() != 4 or len(feature) != len(features[0]):
            shapes = ", ".join(str(tuple(each.shape)) for each in features)
            raise ValueError(f"maps (B, C, H, W) of one batch are compared, not {shapes}")


def pooled_alike(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller of their heights and the smaller of their widths, by adaptive average pooling.

    (B, C, H, W), (B, D, H', W') -> (B, C, min H, min W), (B, D, min H, min W); what are no two maps stays as it is.
    """
    if one.dim() != 4 or other.dim() != 4:
        return one, other
    height, width = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return _pooled(one, (height, width)), _pooled(other, (height, width))


def _pooled(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if tuple(feature.shape[2:]) == size else F.adaptive_avg_pool2d(feature, size)

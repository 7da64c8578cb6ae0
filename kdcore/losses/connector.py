"""Trainable convolutions that take a map of the student to the teacher's width; they keep its height and width."""

from torch import Tensor, nn

from kdcore.losses.regressor import BatchNorm


def as_map(feature: Tensor) -> Tensor:
    """A vector (B, D) as a map of one place, (B, D, 1, 1); a map as it is."""
    return feature[:, :, None, None] if feature.dim() == 2 else feature


def connector(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    """A convolution and batch normalisation: (B, inputs, H, W) -> (B, outputs, H, W), of any sign."""
    # A bias before batch normalisation would be subtracted again with the mean.
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), BatchNorm(outputs))


def projector(inputs: int, middle: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Three convolutions, the second with the given kernel: (B, inputs, H, W) -> (B, outputs, H, W), of any sign."""
    return nn.Sequential(
        *connector(inputs, middle),
        nn.ReLU(),
        *connector(middle, middle, kernel),
        nn.ReLU(),
        *connector(middle, outputs),
    )

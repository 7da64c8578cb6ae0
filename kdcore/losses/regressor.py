"""The regressor: what makes the student's hidden output comparable with the teacher's where their shapes differ."""

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

from kdcore.losses.base import Shapes


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes a batch with one value per channel, which has no variance.

    Such a batch, one sample of a 1x1 map, is normalised by the running statistics, as in evaluation.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def regressor(student: Shapes, teacher: Shapes, pair: tuple[str, str], relu: bool | None = None) -> nn.Module:
    """From the shape of the student's view to that of the teacher's; nothing where they are the same.

    Vectors: a linear map. Maps: a 1x1 convolution, or a strided 3x3 one where the student's map is nearly twice as
    large or more; then batch normalisation and ReLU. Sizes are only brought near: what compares the two pools the rest.

    Args:
        student, teacher: the shapes of all views, without the batch.
        pair: the student's and the teacher's view, two maps or two vectors.
        relu: whether a ReLU ends it; none: unless the teacher's view is one before its activation.
    """
    ours, theirs = student[pair[0]], teacher[pair[1]]
    if ours == theirs:
        return nn.Identity()
    if len(ours) == 1:
        return nn.Linear(ours[0], theirs[0])
    stride = (max(1, round(ours[1] / theirs[1])), max(1, round(ours[2] / theirs[2])))
    kernel = 1 if stride == (1, 1) else 3
    # A bias before batch normalisation would be subtracted again with the mean.
    convolution = nn.Conv2d(ours[0], theirs[0], kernel, stride, padding=kernel // 2, bias=False)
    ends_in_relu = not pair[1].endswith("_pre") if relu is None else relu
    return nn.Sequential(convolution, BatchNorm(theirs[0]), nn.ReLU() if ends_in_relu else nn.Identity())

"""Dropout whose masks cost next to nothing on a CPU."""

from typing import ClassVar

import torch
from torch import Tensor, nn

LANES = 4
LEVELS = 2**16


class Dropout(nn.Dropout):
    """As torch's, with another way to draw on a CPU.

    There torch draws one number for each unit, in one thread, which takes longer than the products around it. Here a
    random word of 64 bits decides on four units: each is dropped where its 16 bits are below p · 2^16. The probability
    is p to 1/2^17, and what is kept is scaled by exactly what was drawn, so that the expectation is that of no dropout.
    """

    by_words: ClassVar[bool] = False
    """Of this process, as the running job has chosen (`Choices.masks`)."""

    def forward(self, input: Tensor) -> Tensor:  # the name is torch's
        if not self.training or self.p == 0:
            return input
        dropped = round(self.p * LEVELS)
        if not (self.by_words and input.device.type == "cpu" and 0 < dropped < LEVELS):
            return super().forward(input)
        words = torch.empty(-(-input.numel() // LANES), dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.int16)[: input.numel()].view(input.shape)  # uniform in [-2^15, 2^15)
        kept = (drawn >= dropped - LEVELS // 2).to(input.dtype)
        return input * kept.mul_(LEVELS / (LEVELS - dropped))

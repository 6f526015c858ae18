"""Attention over channels and positions, for the stages of a U-Net, in 2D and 3D.

SqueezeExcitation  Hu et al., CVPR 2018
CBAM               Woo et al., ECCV 2018: channels, then positions
"""

import torch
from torch import nn

_LEAST = 4  # minimum number of hidden units, for stages of few channels


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by sigmoid(W2 relu(W1 m)), where m is the mean over all positions; W1 has channels /
    reduction rows, at least 4.

    forward: (B, C, *S) to (B, C, *S).
    """

    def __init__(self, dim, channels, reduction=16):
        super().__init__()
        self.gate = _mlp(channels, reduction)

    def forward(self, x):
        return x * _of_channels(torch.sigmoid(self.gate(x.flatten(2).mean(2))), x)


class CBAM(nn.Module):
    """Multiplies each channel by sigmoid(MLP(mean) + MLP(maximum)) over all positions, then each position by the
    sigmoid of a convolution of width 7 of the mean and the maximum over channels.

    forward: (B, C, *S) to (B, C, *S).
    """

    def __init__(self, dim, channels, reduction=16, width=7):
        super().__init__()
        self.gate = _mlp(channels, reduction)
        self.place = (nn.Conv2d if dim == 2 else nn.Conv3d)(2, 1, width, padding=width // 2)

    def forward(self, x):
        flat = x.flatten(2)
        x = x * _of_channels(torch.sigmoid(self.gate(flat.mean(2)) + self.gate(flat.amax(2))), x)
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.place(summary))


def _mlp(channels, reduction):
    hidden = max(channels // reduction, _LEAST)
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))


def _of_channels(factor, x):
    """Reshapes and casts (B, C) so that it can be multiplied with x."""
    return factor.to(x.dtype).view(*factor.shape, *[1] * (x.ndim - 2))


ATTENTION = {"none": None, "se": SqueezeExcitation, "cbam": CBAM}

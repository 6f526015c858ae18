"""UNETR (Hatamizadeh et al., WACV 2022): a vision transformer as encoder, convolutions as decoder.

The image is cut into patches of 2^k voxels per side, which a transformer relates to each other. Hidden states of
intermediate layers are upsampled to 1/2^(k-1), ..., 1/2 of the image size, and joined on the way up like the skip
connections of a U-Net.
"""

import math

from hippo.models.norm import NormAct

import torch
import torch.nn.functional as F
from torch import nn


class ResBlock(nn.Module):
    """Two convolutions of width 3 with instance norm. The input, or a 1x1x1 convolution of it, is added before the
    last leaky ReLU: (B, in_channels, *S) to (B, out_channels, *S)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = NormAct(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = NormAct(out_channels, slope=1.0)  # slope 1 means no activation
        self.short = nn.Identity()
        if in_channels != out_channels:
            self.short = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, bias=False), NormAct(out_channels, slope=1.0)
            )

    def forward(self, x):
        return F.leaky_relu(self.norm2(self.conv2(self.norm1(self.conv1(x)))) + self.short(x), 0.01)


class TransformerBlock(nn.Module):
    """Self-attention over all patches, then an MLP, each with layer norm before and a residual connection: (B, N,
    width) to the same."""

    def __init__(self, width, heads, mlp_ratio=4, dropout=0.0):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """A vision transformer: (B, C, *S), S divisible by `patch`, to a list of hidden states (B, width, *S / patch):
    after each layer but the last, and, normalised, after the last.

    grid: patches along each axis that have a learned position embedding; it is interpolated for other sizes.
    """

    def __init__(self, in_channels, patch, width, layers, heads, grid, dropout=0.0):
        super().__init__()
        self.embed = nn.Conv3d(in_channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(1, width, *grid))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        x = self.embed(x)
        size, position = x.shape[2:], self.position
        if size != position.shape[2:]:
            position = F.interpolate(position, size, mode="trilinear")
        x, hidden = (x + position).flatten(2).transpose(1, 2), []  # (B, N, width)
        for block in self.blocks:
            x = block(x)
            hidden.append(x)
        hidden[-1] = self.norm(x)
        return [h.transpose(1, 2).unflatten(2, size) for h in hidden]


class UNETRBody(nn.Module):
    """UNETR without its head: (B, C, *S), S divisible by `stride`, to a list of the decoder's feature maps, finest
    last."""

    def __init__(self, in_channels, patch, width, layers, heads, features, grid, dropout):
        super().__init__()
        levels = round(math.log2(max(patch, 1)))
        if patch not in (4, 8, 16) or layers < levels or min(width, heads, features) < 1 or width % heads:
            raise ValueError(
                f"expected patches of 4, 8 or 16, a layer for each halving, and a width that {heads} divides; got "
                f"{patch}, {layers}, {width}"
            )
        self.stride, channels = patch, [features * 2**i for i in range(levels)]  # finest first
        self.decoder_channels = channels[::-1]
        self.vit = ViT(in_channels, patch, width, layers, heads, grid, dropout)
        self.taken = [i * layers // levels for i in range(1, levels)]  # layers whose states are joined, finest first
        self.stem = ResBlock(in_channels, features)
        self.skips = nn.ModuleList(_upsampling(width, c, levels - i) for i, c in enumerate(channels[1:], 1))
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(a, b, 2, stride=2, bias=False) for a, b in zip([width, *channels[:0:-1]], channels[::-1])
        )
        self.merge = nn.ModuleList(ResBlock(2 * c, c) for c in channels[::-1])

    def encoder(self):
        """Returns the transformer."""
        return self.vit

    def forward(self, x):
        hidden = self.vit(x)
        skips = [self.stem(x), *(skip(hidden[i]) for skip, i in zip(self.skips, self.taken))]
        x, outputs = hidden[-1], []
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
            outputs.append(x)
        return outputs


def _upsampling(width, channels, halvings):
    """Upsamples from the resolution of the patches by a factor of 2^halvings, with a residual block after each
    doubling but the first."""
    layers = [nn.ConvTranspose3d(width, channels, 2, stride=2, bias=False)]
    for _ in range(halvings - 1):
        layers += [nn.ConvTranspose3d(channels, channels, 2, stride=2, bias=False), ResBlock(channels, channels)]
    return nn.Sequential(*layers)

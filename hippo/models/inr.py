"""The INR head: a SIREN on voxel coordinates and features (Sitzmann et al., NeurIPS 2020)."""

import math

import torch
from torch import nn


class SineLayer(nn.Module):
    """Computes sin(omega_0 (W x + b)), initialised as in Sitzmann et al. 2020 (SIREN, section 3.2 and supplement 1.5):
    W uniform in +-1/in for the first layer, in +-sqrt(6/in)/omega_0 for the others. (..., in) to (..., out)."""

    def __init__(self, in_features, out_features, omega_0=30.0, first=False):
        super().__init__()
        self.omega_0, self.linear = omega_0, nn.Linear(in_features, out_features)
        bound = 1 / in_features if first else math.sqrt(6 / in_features) / omega_0
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(self.omega_0 * self.linear(x))


class INRHead(nn.Module):
    """An implicit neural representation of the segmentation: a SIREN that maps the normalised coordinates of each
    voxel and its features, projected to `hidden_dim` numbers, to logits. (B, C, *S) to (B, num_classes, *S).

    Coordinates are relative to the centre of the image and divided by `extent` voxels, so they are the same in a
    training patch and in a volume of another size. chunk: voxels evaluated at a time (0: all at once); it saves memory
    and does not change the result. Runs in float32 under autocast too, because omega_0 = 30 amplifies the rounding of
    bf16 too much.
    """

    def __init__(self, dim, in_channels, num_classes, hidden_dim=64, layers=2, omega_0=30.0, chunk=0):
        super().__init__()
        self.extent, self.chunk = {2: 64, 3: 32}[dim], chunk
        self.project = nn.Linear(in_channels, hidden_dim)
        self.siren = nn.Sequential(
            *(
                SineLayer(dim + hidden_dim if i == 0 else hidden_dim, hidden_dim, omega_0, first=i == 0)
                for i in range(layers)
            )
        )
        self.out = nn.Linear(hidden_dim, num_classes)
        bound = math.sqrt(6 / hidden_dim) / omega_0
        nn.init.uniform_(self.out.weight, -bound, bound)

    def coordinates(self, size, device=None):
        """Returns the coordinates of each voxel relative to the centre, in units of `extent` voxels: (prod(size),
        len(size))."""
        axes = [(torch.arange(s, device=device) - (s - 1) / 2) / self.extent for s in size]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)

    def forward(self, features):
        size = features.shape[2:]
        with torch.autocast(features.device.type, enabled=False):
            values = features.movedim(1, -1).flatten(1, -2).to(self.out.weight.dtype)  # (B, N, C)
            coords = self.coordinates(size, features.device).to(values.dtype)  # (N, dim)
            step = self.chunk or len(coords)
            logits = [self._points(coords[i : i + step], values[:, i : i + step]) for i in range(0, len(coords), step)]
            logits = torch.cat(logits, dim=1)  # (B, N, K)
        return logits.unflatten(1, size).movedim(-1, 1)

    def _points(self, coords, values):
        coords = coords.expand(len(values), -1, -1)
        return self.out(self.siren(torch.cat([coords, self.project(values)], dim=-1)))

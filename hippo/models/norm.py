"""Fused instance norm and leaky ReLU, fast on a CPU."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class _NormAct(torch.autograd.Function):
    """Instance norm, affine and leaky ReLU of x (B, N, C), in few passes over memory.

    Statistics are in float32 (float64 for float64), the rest in the type of the input. Broadcasting over few channels
    is slow on a CPU, so a parameter with one value per channel is repeated over `k` voxels, and x is viewed as (B,
    N/k, k C).
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps, slope):
        (b, n, c), k = x.shape, math.gcd(x.shape[1], 64)
        stats, rows = torch.promote_types(x.dtype, torch.float32), (b, n // k, k * c)
        tile = lambda v: v.to(x.dtype).expand(b, 1, c).repeat(1, 1, k)  # noqa: E731
        centred = x.view(rows) - tile(x.mean(1, keepdim=True, dtype=stats))
        rstd = (centred * centred).view(b, n, c).mean(1, keepdim=True, dtype=stats).add_(eps).rsqrt_()
        y = F.leaky_relu_(torch.addcmul(tile(bias), centred, tile(rstd * weight)), slope)
        ctx.save_for_backward(centred, y, rstd, weight)
        ctx.tile, ctx.slope = tile, slope
        return y.view(b, n, c)

    @staticmethod
    def backward(ctx, grad):
        centred, y, rstd, weight = ctx.saved_tensors
        (b, n, c), tile = grad.shape, ctx.tile
        g = torch.ops.aten.leaky_relu_backward(grad.reshape(y.shape), y, ctx.slope, True)
        mean_g = g.view(b, n, c).mean(1, keepdim=True, dtype=rstd.dtype)
        mean_gx = (g * centred).view(b, n, c).mean(1, keepdim=True, dtype=rstd.dtype)
        scale = rstd * weight
        offset = torch.addcmul(tile(-scale * mean_g), centred, tile(-scale * rstd * rstd * mean_gx))
        grad_x = torch.addcmul(offset, g, tile(scale)).view(b, n, c)
        return grad_x, (mean_gx * rstd).sum((0, 1)) * n, mean_g.sum((0, 1)) * n, None, None


class NormAct(nn.Module):
    """Instance norm with affine, then leaky ReLU: (B, C, *S) to (B, C, *S).

    On a CPU, torch's own instance norm copies channels-last tensors and takes longer than the convolution before it. So
    predictions in float32 use its group norm with one channel a group; training, and bf16, the fused form above, which is
    faster there. Other devices use torch's instance norm. All give the same result (see the tests).
    """

    def __init__(self, channels, eps=1e-5, slope=0.01):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps, self.slope = eps, slope

    def forward(self, x):
        if x.device.type != "cpu":
            # F.instance_norm itself would refuse a bottleneck of one voxel
            x = torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, True)
            return F.leaky_relu_(x, self.slope)
        if x.dtype == torch.float32 and not torch.is_grad_enabled():
            x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
            return F.leaky_relu_(torch.group_norm(x, x.shape[1], self.weight, self.bias, self.eps), self.slope)
        last = x.movedim(1, -1).contiguous()  # (B, *S, C): no copy where x is channels-last
        y = _NormAct.apply(last.view(len(x), -1, x.shape[1]), self.weight, self.bias, self.eps, self.slope)
        return y.view(last.shape).movedim(-1, 1)

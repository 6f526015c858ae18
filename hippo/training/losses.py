"""The loss: soft Dice and cross-entropy, or the focal loss."""

import torch.nn.functional as F


def dice_ce_loss(logits, target, focal_gamma=0.0, smooth=1e-5, weights=None):
    """Computes 0.5 x Dice loss + 0.5 x cross-entropy in float32: a scalar, the mean over the batch.

    logits: (B, C, *S), or a list of them, finest first (deep supervision); target: (B, *S) integers in [0, C), or (B,
    C, *S) fractions of the classes in each voxel. Dice loss: 1 - soft Dice, averaged over samples and foreground
    classes (Milletari et al. 2016); `smooth` voxels are added to numerator and denominator. focal_gamma > 0 weights the
    cross-entropy of each voxel by (1 - p)^focal_gamma of its true class (Lin et al. 2017). weights: of each class in
    the cross-entropy, a tensor (C,); None: 1. The outputs of a list are weighted 1, 1/2, 1/4, ..., as in nnU-Net. The
    target of a coarser output is the fraction of each class in its voxels.
    """
    outputs = logits if isinstance(logits, (list, tuple)) else [logits]
    one_hot = target  # (B, C, *S)
    if target.ndim < outputs[0].ndim:
        one_hot = F.one_hot(target.long(), outputs[0].shape[1]).movedim(-1, 1).float()
    total, parts = 0, [0.5**i for i in range(len(outputs))]
    for part, output in zip(parts, outputs):
        size = output.shape[2:]
        shares = one_hot if size == one_hot.shape[2:] else F.interpolate(one_hot, size, mode="area")
        total = total + part * _dice_ce(output, shares, focal_gamma, smooth, weights)
    return total / sum(parts)


def _dice_ce(logits, shares, focal_gamma, smooth, weights):
    """Computes dice_ce_loss for one output: logits (B, C, *S), fractions of the classes (B, C, *S)."""
    log_p, shares = F.log_softmax(logits.float().flatten(2), dim=1), shares.flatten(2)  # (B, C, N)
    p = log_p.exp()
    weighted = shares * (1 - p).clamp_min(0) ** focal_gamma * log_p if focal_gamma else shares * log_p
    if weights is not None:
        weighted = weighted * weights[:, None]
    overlap, total = (p * shares).sum(2)[:, 1:], (p.sum(2) + shares.sum(2))[:, 1:]  # (B, C - 1)
    dice = ((2 * overlap + smooth) / (total + smooth)).mean()
    return 0.5 * (1 - dice) - 0.5 * weighted.sum(1).mean()

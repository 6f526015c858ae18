"""The loss: soft Dice and focal loss or cross-entropy."""

import torch
import torch.nn.functional as F


def dice_focal_loss(logits, target, gamma=2.0, smooth=1e-5):
    """0.5 x Dice loss + 0.5 x focal loss.

    logits: (B, C, *S); target: (B, *S) integers in [0, C). Dice: 1 - soft Dice, averaged over samples and foreground
    classes (Milletari et al. 2016); focal: -(1 - p)^gamma log p of the true class, averaged over voxels (Lin et al.
    2017; gamma 0 is cross-entropy). Computed in float32. A list of logits, finest first (deep supervision), is
    weighted 1, 1/2, 1/4, ..., as in nnU-Net, against the target resampled to each size.
    """
    if isinstance(logits, (list, tuple)):
        weights = [0.5**i for i in range(len(logits))]
        losses = [
            dice_focal_loss(x, F.interpolate(target[:, None].float(), x.shape[2:])[:, 0].long(), gamma, smooth)
            for x in logits
        ]
        return sum(w * loss for w, loss in zip(weights, losses)) / sum(weights)
    log_p = F.log_softmax(logits.float().flatten(2), dim=1)  # (B, C, N)
    p, target = log_p.exp(), target.flatten(1)[:, None].long()  # (B, 1, N)
    log_p_true = log_p.gather(1, target)
    focal = -((1 - log_p_true.exp()).clamp_min(0) ** gamma * log_p_true).mean() if gamma else -log_p_true.mean()
    truth = torch.zeros_like(p).scatter_(1, target, 1.0)
    overlap, total = (p * truth).sum(2)[:, 1:], (p.sum(2) + truth.sum(2))[:, 1:]  # (B, C - 1)
    dice = ((2 * overlap + smooth) / (total + smooth)).mean()
    return 0.5 * (1 - dice) + 0.5 * focal

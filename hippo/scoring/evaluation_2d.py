"""Evaluates 2D models on slices."""

from hippo.device import autocast
from hippo.processes import gather, rank, world_size
from hippo.scoring.metrics import case_metrics

import numpy as np
import torch
import torch.nn.functional as F


@torch.inference_mode()
def evaluate_slices(model, slices, grids, batch_size, device, dtype, loss_function, own_grid=False):
    """Evaluates slices. Returns (means over slices {"dice", "nsd_1mm", "dice_original", "nsd_1mm_original"}, each
    [anterior, posterior]; mean loss).

    slices: data.slices.Slices; grids: data.slices.slice_grids. A slice counts for a label only if truth or prediction
    has it; by the original's definition, it otherwise counts 1. own_grid: probabilities are averaged over the volume's
    own voxels, the label is chosen there, and the label map is enlarged like the truth was. Otherwise the label of
    each pixel is chosen separately.
    """
    values, losses = {"dice": [], "nsd_1mm": []}, []
    for start in range(rank() * batch_size, len(slices.cases), world_size() * batch_size):
        image = torch.from_numpy(slices.images[start : start + batch_size])[:, None].to(device)
        mask = torch.from_numpy(slices.masks[start : start + batch_size])
        with autocast(device, dtype):
            logits = model(image)
        losses += [loss_function(logits, mask.to(device)).item()] * len(mask)
        for i, (probabilities, truth) in enumerate(zip(logits.float().softmax(1), mask.numpy())):
            spacing, shape = grids[slices.cases[start + i]][slices.planes[start + i]]
            prediction = _decide(probabilities, shape, truth.shape) if own_grid else probabilities.argmax(0)
            prediction = prediction.byte().cpu().numpy()
            labels = range(1, len(probabilities))
            result = case_metrics(prediction, truth, spacing, len(labels))
            there = [bool(((prediction == label) | (truth == label)).any()) for label in labels]
            for name in values:
                values[name].append([v if t else np.nan for v, t in zip(result[name], there)])
    parts = gather((values, losses))
    values = {name: np.concatenate([part[0][name] for part in parts if part[1]]) for name in values}
    losses = np.concatenate([part[1] for part in parts])
    means = {name: np.nanmean(v, axis=0).tolist() for name, v in values.items()}
    means |= {f"{name}_original": np.nan_to_num(v, nan=1).mean(0).tolist() for name, v in values.items()}
    return means, float(np.mean(losses))


def _decide(probabilities, own_shape, shape):
    """Returns the label map (H, W) of probabilities (C, H, W), decided on a grid of own_shape and enlarged to `shape`."""
    labels = F.interpolate(probabilities[None], own_shape, mode="bilinear", antialias=True).argmax(1)[None]
    return F.interpolate(labels.float(), shape, mode="nearest-exact")[0, 0]

"""From a normalised volume to class probabilities, by 3D and by 2D models."""

import numpy as np
import torch
import torch.nn.functional as F

from hippo.device import autocast


def tta_views(model):
    """Test-time augmentation: (shift in voxels, axes to flip) of each view of a volume for a 3D model.

    A shift pads the volume at its low sides with replicated edges, which moves it against the grid of the poolings without
    interpolation; with the network's own padding to whole strides by one voxel in all, with two poolings. Flips are of
    use only along axes that training flipped too.
    """
    shifts = [(0, 0, 0), (model.unet.stride // 2,) * 3]
    flips = [()] + [(axis,) for axis in ("xyz".index(a) for a in model.flip_axes)]
    return [(shift, flip) for shift in shifts for flip in flips]


@torch.inference_mode()
def predict_volume(model, image, device, dtype, tta=False):
    """Class probabilities of one volume: image (D, H, W) float32, normalised, to a (C, D, H, W) float32 tensor on `device`.

    A 3D model sees the volume, with tta averaged over tta_views(model). A 2D model sees every slice of the
    three planes, each resampled to model.slice_size squared as in training; the planes' probabilities are averaged.
    The probabilities of a list of models are averaged. Models must be in eval mode.
    """
    if isinstance(model, list):
        return sum(predict_volume(member, image, device, dtype, tta) for member in model) / len(model)
    x = torch.from_numpy(np.ascontiguousarray(image)).to(device)
    if model.dim == 2:
        return _predict_slices(model, x, device, dtype)
    x = x[None, None]  # (1, 1, D, H, W)
    views = tta_views(model) if tta else [((0, 0, 0), ())]
    total = 0
    for shift, flip in views:
        axes = [a + 2 for a in flip]
        view = F.pad(x.flip(axes), [p for s in reversed(shift) for p in (s, 0)], mode="replicate")
        with autocast(device, dtype):
            logits = model(view)
        logits = logits[(0, slice(None), *(slice(s, None) for s in shift))].float()
        total = total + logits.softmax(0).flip([a - 1 for a in axes])
    return total / len(views)


def _predict_slices(model, x, device, dtype, batch=16):
    size = (model.slice_size,) * 2
    x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-8)
    total = 0
    for axis in range(3):
        slices = x.movedim(axis, 0)[:, None]  # (N, 1, H, W)
        big = F.interpolate(slices, size, mode="bilinear", align_corners=False)
        parts = []
        for start in range(0, len(big), batch):
            with autocast(device, dtype):
                logits = model(big[start : start + batch])
            probabilities = logits.float().softmax(1)
            parts.append(F.interpolate(probabilities, slices.shape[2:], mode="bilinear", antialias=True))
        total = total + torch.cat(parts).movedim(1, 0).movedim(1, axis + 1)  # (C, N, H, W) to (C, D, H, W)
    return total / 3

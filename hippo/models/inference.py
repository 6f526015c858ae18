"""Predicts class probabilities of a normalised volume, with 3D and 2D models."""

import contextlib
from typing import NamedTuple

from hippo.data.intensity import HEAD_NORMALISATION, NORMALISATION, to_unit_range
from hippo.data.spatial import anti_alias
from hippo.device import autocast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

_BATCH = 4  # patches that a 3D model sees at once; more take memory, and no less time


class TrainedModel(NamedTuple):
    """A network together with the preprocessing of its images."""

    model: torch.nn.Module
    preprocessing: dict

    def to(self, device):
        """Returns the TrainedModel on another device."""
        return TrainedModel(self.model.to(device), self.preprocessing)


def make_preprocessing(
    slice_size=128,
    flip_axes="",
    window=(36, 52, 36),
    spacing_mm=1.0,
    normalisation=NORMALISATION,
):
    """Returns the preprocessing of a model's images as stored in a checkpoint: a dict of plain values.

    slice_size: pixels along each side of a 2D model's slices. flip_axes: axes of "xyz" that training mirrored. window:
    voxels of a 3D model's training patch. spacing_mm: spacing of its voxels. normalisation: NORMALISATION
    (data.intensity.normalise) or, for a network that locates hippocampi in heads, HEAD_NORMALISATION (to_head_range).
    Raises ValueError for anything else.
    """
    if not (type(slice_size) is int and 8 <= slice_size <= 1024):
        raise ValueError("slice_size")
    if not isinstance(flip_axes, str) or sorted(flip_axes) != sorted(set(flip_axes) & set("xyz")):
        raise ValueError("flip_axes")
    if not (len(window) == 3 and all(type(n) is int and 1 <= n <= 1024 for n in window)):
        raise ValueError("window")
    if not (isinstance(spacing_mm, float) and 0.1 <= spacing_mm <= 10):
        raise ValueError("spacing_mm")
    if normalisation not in (NORMALISATION, HEAD_NORMALISATION):
        raise ValueError("normalisation")
    return {
        "spacing_mm": spacing_mm,
        "window": list(window),
        "normalisation": normalisation,
        "slice_size": slice_size,
        "flip_axes": flip_axes,
    }


def tta_views(trained):
    """Returns the views for test-time augmentation with a 3D model: (shift in voxels, axes to flip) of each.

    A shift pads the low sides with replicated edges, by half the network's stride, so that the pooling grid meets other
    voxels. (The network pads both sides to a multiple of its stride, which takes half of the shift back.) Flips help only
    along axes that training flipped too.
    """
    shifts = [(0, 0, 0), (trained.model.unet.stride // 2,) * 3]
    flips = [()] + [(axis,) for axis in ("xyz".index(a) for a in trained.preprocessing["flip_axes"])]
    return [(shift, flip) for shift in shifts for flip in flips]


def predict_volume(trained, image, device, dtype, tta=False):
    """Predicts class probabilities of one volume: image (D, H, W) float32, normalised, to a (C, D, H, W) float32
    tensor on `device`.

    trained: a TrainedModel in eval mode, or a list of them, whose probabilities are averaged. For the rest see
    predict_batch.
    """
    if isinstance(trained, list):
        return sum(predict_volume(member, image, device, dtype, tta) for member in trained) / len(trained)
    return predict_batch(trained, np.asarray(image)[None], device, dtype, tta)[0]


@torch.inference_mode()
def predict_batch(trained, images, device, dtype, tta=False):
    """Predicts class probabilities of volumes of one size: images (N, D, H, W) float32, normalised, to a (N, C, D, H,
    W) float32 tensor on `device`.

    trained: a TrainedModel in eval mode. A 3D model sees each volume; with tta, the result is averaged over tta_views.
    A 2D model sees every slice of the three planes, resampled to its training slice size; the probabilities of the
    planes are averaged.
    """
    if trained.model.dim == 2:
        return torch.stack([_predict_slices(trained, image, device, dtype) for image in images])
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device)[:, None]  # (N, 1, D, H, W)
    return torch.cat([_predict_patches(trained, part, dtype, tta) for part in x.split(_BATCH)])


def _predict_patches(trained, x, dtype, tta):
    """Implements predict_batch for a 3D model: (N, 1, D, H, W) to (N, C, D, H, W)."""
    views = tta_views(trained) if tta else [((0, 0, 0), ())]
    total = 0
    for shift, flip in views:
        axes = [a + 2 for a in flip]
        view = F.pad(x.flip(axes), [p for s in reversed(shift) for p in (s, 0)], mode="replicate")
        with autocast(x.device, dtype):
            logits = trained.model(view)
        logits = logits[(..., *(slice(s, None) for s in shift))].float()
        total = total + logits.softmax(1).flip(axes)
    return total / len(views)


def decide(probabilities, border="voxel"):
    """Returns the label map (D, H, W), integers, of class probabilities (C, D, H, W), a tensor: the most probable
    class of each voxel.

    border: between the two parts. voxel: as above; plane: the most probable coronal plane, since most labels of the
    Decathlon are split by one. Its normal is axis 1, which points to anterior.
    """
    labels = probabilities.argmax(0)
    if border == "voxel":
        return labels
    gain = (probabilities[2] - probabilities[1]).sum((0, 2)).cumsum(0)  # (H,): if slices up to here are posterior
    behind = int(torch.cat([gain.new_zeros(1), gain]).argmax())  # number of posterior slices
    part = torch.where(torch.arange(labels.shape[1], device=labels.device) < behind, 2, 1)[:, None]  # (H, 1)
    return torch.where(labels > 0, part, 0)


@torch.inference_mode()
def sample_volume(trained, image, device, dtype, samples, seed=0, batch=4):
    """Returns class probabilities (samples, C, D, H, W) of one volume, sampled with dropout active as in training (MC
    dropout: Gal & Ghahramani 2016). The same seed gives the same samples.

    trained: TrainedModel of a 3D network in eval mode. Raises ValueError for a network without dropout.
    """
    layers = _dropout_layers(trained)
    if not layers:
        raise ValueError("a network that was trained without dropout")
    x = torch.from_numpy(np.ascontiguousarray(image)).to(device)[None, None]  # (1, 1, D, H, W)
    parts = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _training(layers):
        torch.manual_seed(seed)
        for start in range(0, samples, batch):
            with autocast(device, dtype):
                logits = trained.model(x.expand(min(batch, samples - start), *x.shape[1:]))
            parts.append(logits.float().softmax(1))
    return torch.cat(parts)


def has_dropout(trained):
    """Whether sample_volume can be used with a TrainedModel: a 3D network that was trained with dropout."""
    return trained.model.dim == 3 and bool(_dropout_layers(trained))


def _dropout_layers(trained):
    return [m for m in trained.model.modules() if isinstance(m, (nn.Dropout, nn.Dropout3d)) and m.p > 0]


@contextlib.contextmanager
def _training(layers):
    """Puts the layers into train mode while the block runs."""
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


def _predict_slices(trained, image, device, dtype, batch=16):
    """Implements predict_volume for a 2D model."""
    size = (trained.preprocessing["slice_size"],) * 2
    image = to_unit_range(image)
    total = 0
    for axis in range(3):
        slices = np.moveaxis(image, axis, 0)  # (N, H, W)
        smooth = np.ascontiguousarray(anti_alias(slices, (len(slices), *size)))
        enlarged = F.interpolate(torch.from_numpy(smooth).to(device)[:, None], size, mode="bilinear")
        parts = []
        for start in range(0, len(enlarged), batch):
            with autocast(device, dtype):
                logits = trained.model(enlarged[start : start + batch])
            probabilities = logits.float().softmax(1)
            parts.append(F.interpolate(probabilities, slices.shape[1:], mode="bilinear", antialias=True))
        total = total + torch.cat(parts).movedim(1, 0).movedim(1, axis + 1)  # (C, N, H, W) to (C, D, H, W)
    return total / 3

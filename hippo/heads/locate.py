"""Locates both hippocampi in a whole head, tells left from right, and estimates the intracranial volume.

A small network (train_locate.py) sees the head in voxels of 2 mm, and labels 64 x 64 x 64 voxels of 4 mm.
"""

from typing import NamedTuple

from hippo.data.anatomies import CLASSES, DETAIL, to_channels
from hippo.data.intensity import HEAD_NORMALISATION, to_head_range
from hippo.data.spatial import largest_component, shrink
from hippo.device import autocast
from hippo.errors import require
from hippo.heads.anatomy import APART_MM, PLAUSIBLE_ETIV_MM3, SEEN_MM3, SIDES, SMALL_ETIV_MM3
from hippo.heads.window import Window
from hippo.models.checkpoint import load_model

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation, binary_erosion

# the network sees large heads too small and small ones too large, so eTIV is a power of the volume that it labels
ETIV_SCALE, ETIV_POWER, ETIV_MIDDLE = 0.98, 1.15, 1.5e6  # fitted by tools.locating, see estimate_etiv
_LEFT = 1  # class of the left hippocampus
_MIRRORED_CLASSES = [0, 2, 1, 4, 3, 5]
_FOUND = 0.9  # minimum probability at the most certain voxel of a hippocampus
_MOST_TILTED_DEGREES = 35  # the head is flagged if the line from left to right deviates by more from the axis
_MOVED_MM = 12  # if the brain is further from the centre of the cube, the cube is moved and the head is processed again
_T1_CONTRAST = 0.7  # in standard deviations inside the skull, see _is_t1; T1-weighted heads have 1.2 to 2.1
_RIM_VOXELS = 2  # around the intracranial space, where its lower probabilities count for its volume, too
_CUT_VOXELS = 8  # voxels of the intracranial space that may touch the edge of the field of view
_EDGE = 1e-3  # voxels by which a place may lie beyond the outermost ones, by rounding, and still be in view


class Located(NamedTuple):
    """What was found in a head. Positions are in mm from the centre of the scan.

    centres: {side: (3,) or None}, centres of the hippocampi; certainty: {side: highest probability}; problems: {side:
    why it was not found}; etiv_mm3; inside: probability of the intracranial space (N, N, N) in `window`; flags: list
    of names.
    """

    centres: dict
    certainty: dict
    problems: dict
    etiv_mm3: float
    inside: np.ndarray
    window: Window
    flags: list


def load_locator(path):
    """Loads the TrainedModel that locates hippocampi. Raises UserError, see checkpoint.load_model, and if it was trained
    on other images than heads."""
    trained, _ = load_model(path, classes=(len(CLASSES) + 1,), channels=(DETAIL**3,))
    is_for_heads = trained.preprocessing["normalisation"] == HEAD_NORMALISATION
    require(is_for_heads, f"{path}: not trained on heads; expected weights of train_locate.py")
    return trained


@torch.inference_mode()
def locate(locator, scan, device, dtype):
    """Locates both hippocampi in a Scan of a whole head. Returns Located."""
    spacing = locator.preprocessing["spacing_mm"]
    window = Window(np.zeros(3), tuple(locator.preprocessing["window"]), spacing)
    for last in (False, False, True):
        image, seen = view_head(scan, window)
        probabilities = _classify(locator, image, device, dtype)
        inside = 1 - probabilities[0]
        inside = np.where(binary_dilation(largest_component(inside > 0.5), iterations=_RIM_VOXELS), inside, 0)
        middle = _middle(inside, window)
        if last or middle is None or np.linalg.norm(middle - window.centre_mm) < _MOVED_MM:
            break
        window = window._replace(centre_mm=middle)
    image = to_channels(image).mean(0)
    centres, certainty = {}, {}
    for number, side in enumerate(SIDES, _LEFT):
        centres[side], certainty[side] = _hippocampus(probabilities[number], window)
    flags, etiv = [], estimate_etiv(float(inside.sum() * spacing**3))
    border = binary_dilation(~seen, border_value=True) & (inside > 0.5)
    if np.count_nonzero(border) > _CUT_VOXELS:
        flags.append("intracranial_space_cut")
    elif not PLAUSIBLE_ETIV_MM3[0] <= etiv <= PLAUSIBLE_ETIV_MM3[1]:
        flags.append("etiv_implausible")
    if not _is_t1(image, inside):
        flags.append("contrast_not_t1")
    problems, doubts = check(centres, certainty)
    if etiv < SMALL_ETIV_MM3:
        hint = f"; a brain of {etiv / 1000:.0f} ml: check the voxel size in the header"
        problems = {side: text + hint for side, text in problems.items()}
    return Located(centres, certainty, problems, etiv, inside, window, flags + doubts)


def estimate_etiv(inside_mm3):
    """Returns eTIV in mm3 for the sum of the probabilities of the intracranial space times the volume of a voxel."""
    return ETIV_SCALE * ETIV_MIDDLE * (inside_mm3 / ETIV_MIDDLE) ** ETIV_POWER


def _classify(locator, image, device, dtype):
    """Returns class probabilities (6, N, N, N) of an image (N x DETAIL, ...), averaged over it and its mirror image."""
    x = np.stack([to_channels(image), to_channels(image[::-1])])
    with autocast(device, dtype):
        logits = locator.model(torch.from_numpy(x).to(device))  # (2, 6, N, N, N)
    straight, mirrored = logits.float().softmax(1)
    return (straight + mirrored[_MIRRORED_CLASSES].flip(1)).cpu().numpy() / 2


def view_head(scan, window):
    """Resamples a Scan to a coarse window of N voxels along each side. Returns (image (N x DETAIL, ...) scaled by
    to_head_range, boolean mask (N, N, N) of the field of view)."""
    fine = window._replace(size=tuple(n * DETAIL for n in window.size), spacing_mm=window.spacing_mm / DETAIL)
    image, fine_seen = _resample(scan, fine)
    seen = fine_seen[(slice(DETAIL // 2, None, DETAIL),) * 3]
    return to_head_range(image, fine_seen), seen


def _resample(scan, window):
    """Resamples a Scan to a window. Returns (image, boolean mask of the field of view)."""
    spacing = np.linalg.norm(scan.matrix, axis=0)
    factors = np.maximum(1, (window.spacing_mm / spacing + 0.01).astype(int))
    coarse = shrink(scan.array, factors)
    # transform from window voxels to scan voxels to coarse voxels
    steps = np.linalg.solve(scan.matrix, window.steps())
    start = (np.array(scan.array.shape) - 1) / 2 + np.linalg.solve(scan.matrix, window.to_mm(np.zeros(3)))
    steps, start = steps / factors[:, None], (start - (factors - 1) / 2) / factors
    places = [
        torch.arange(n, dtype=torch.float32).view([n if i == axis else 1 for i in range(3)])
        for axis, n in enumerate(window.size)
    ]
    grid, seen = [], True
    for row, first, n in zip(steps.tolist(), start.tolist(), coarse.shape):  # torch's sampling has all cores
        at = row[0] * places[0] + row[1] * places[1] + (row[2] * places[2] + first)  # (N, N, N) voxels of coarse
        seen = seen & (at > -_EDGE) & (at < n - 1 + _EDGE)
        grid.insert(0, at * (2 / max(n - 1, 1)) - 1)
    volume, grid = torch.from_numpy(coarse)[None, None], torch.stack(grid, -1)[None]
    image = F.grid_sample(volume, grid, padding_mode="border", align_corners=True)[0, 0]
    return image.numpy(), seen.numpy()


def check(centres, certainty):
    """Checks that each side was found with certainty and that their positions are plausible. Returns ({side: why it
    was not found}, flags)."""
    problems = {}
    for side in SIDES:
        if centres[side] is None or certainty[side] < _FOUND:
            problems[side] = f"no {side} hippocampus found ({certainty[side]:.2f} sure)"
    if problems:
        return problems, []
    line = centres["right"] - centres["left"]
    apart = float(np.linalg.norm(line))
    if not APART_MM[0] <= apart <= APART_MM[1]:
        return dict.fromkeys(SIDES, f"left and right found {apart:.0f} mm apart, which cannot be"), []
    if line[0] < 0:
        return dict.fromkeys(SIDES, "sides swapped: the anatomy and the header do not agree on the head's pose"), []
    turned = np.degrees(np.arccos(line[0] / apart))
    return {}, ["head_turned"] * bool(turned > _MOST_TILTED_DEGREES)


def _middle(weights, window):
    """Returns the centre of mass in mm, or None if the weights are empty."""
    total = weights.sum()
    if total < 1:
        return None
    voxels = [np.arange(n) @ weights.sum(tuple({0, 1, 2} - {axis})) / total for axis, n in enumerate(weights.shape)]
    return window.to_mm(np.array(voxels))


def _hippocampus(probability, window):
    """Returns (centre in mm of the component with the largest sum of probabilities, or None if its volume is
    implausible; its highest probability)."""
    part = largest_component(probability > 0.3 * max(probability.max(), 0.1), probability)
    weights = np.where(part, probability, 0)
    volume = weights.sum() * window.spacing_mm**3
    plausible = SEEN_MM3[0] <= volume <= SEEN_MM3[1]
    return _middle(weights, window) if plausible else None, float(weights.max())


def _is_t1(image, inside):
    """Tests whether the intracranial space is darker at its border, where fluid is, than deep inside, as in
    T1-weighted images. Inverted and T2-weighted images fail this test; proton density and FLAIR images can pass it."""
    space = inside > 0.5
    deep, shell = binary_erosion(space, iterations=5), space & ~binary_erosion(space)
    if not deep.any():
        return True  # too small to tell
    return image[deep].mean() - image[shell].mean() > _T1_CONTRAST * image[space].std()

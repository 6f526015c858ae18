"""Simulated scans: rescans of a head (turned, shifted, cut, of other voxels, noisier, shaded), and heads painted from anatomies,
and degraded crops. See tools/stability.py for what is measured on them."""

from pathlib import Path

from hippo.data.anatomies import BETWEEN, FLUID, GREY, OUTSIDE, WHITE, bound
from hippo.data.augment import PARTS
from hippo.data.degrade import inwards
from hippo.data.nifti import read_nifti
from hippo.errors import require
from hippo.heads.anatomy import FREESURFER, LABELS, SIDES
from hippo.heads.scan import Scan
from hippo.scoring.metrics import dice

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import affine_transform, binary_dilation, gaussian_filter, map_coordinates
from scipy.optimize import brentq

_SIDES = {side: (FREESURFER[side], LABELS[side]) for side in SIDES}  # the label in an anatomy, and those of predict.py
DEFECTIVE = (("training_seg_07", "left"),)  # labels that miss most of the hippocampus: (anatomy, side)
_AROUND_MM = 15  # around a hippocampus: the warp of thinned fades within it
_TISSUES = ("white matter", "grey matter", "fluid", "outside")
PAINTED = {
    "T1": (0.9, 0.6, 0.15, 0.5),
    "T2": (0.35, 0.5, 1, 0.3),
    "PD": (0.7, 0.85, 0.95, 0.5),
    "FLAIR": (0.55, 0.7, 0.1, 0.4),
}
PAINTED = {name: dict(zip(_TISSUES, values)) for name, values in PAINTED.items()}


def find_anatomies(folder):
    """The paths of the label maps in a folder."""
    paths = sorted(Path(folder).glob("*.nii.gz"))
    require(paths, f"{folder}: no label maps in it; get them with: python get_data.py --anatomies={folder}")
    return paths


def intracranial_mm3(labels):
    """Returns the true intracranial volume in a label map with voxels of 1 mm, see hippo.data.anatomies.bound."""
    bounded = bound(labels, 1)
    return int(np.count_nonzero((bounded > 0) & (bounded < OUTSIDE)))


def skull(folder, segmenter):
    """What the scalp, the skull and the face change: {anatomy: volumes and Dice of a T1-like head with them, and with zeros
    in their place}."""
    heads = {}
    for number, path in enumerate(find_anatomies(folder)):
        whole, truth = paint(path, "T1", np.random.default_rng([5, number]))
        stripped = whole._replace(array=np.where((truth == 0) | (truth >= OUTSIDE), 0, whole.array))
        found, heads[path.name] = {}, {"intracranial_mm3": intracranial_mm3(truth)}
        for name, scan in (("whole head", whole), ("brain", stripped)):
            result = segmenter(scan)
            found[name] = result.labels()
            flags = sorted({str(flag) for side in result.sides for flag in side.flags})
            row = {"etiv_mm3": result.etiv_mm3, "flags": flags}
            for side, (label, ours) in _SIDES.items():
                mask = np.isin(found[name], ours)
                row[side] = {"mm3": int(mask.sum()), "dice": dice(mask, truth == label)}
            heads[path.name][name] = row
        both = {side: dice(*(np.isin(labels, ours) for labels in found.values())) for side, (_, ours) in _SIDES.items()}
        heads[path.name]["agreement"] = both
        print(path.name, heads[path.name], flush=True)
    return heads


# ---- heads painted from anatomies


def paint(path, contrast, rng):
    """(Scan, label map (D, H, W)) of an anatomy, painted in one of PAINTED at 1 mm, slightly blurred and noisy."""
    labels = read_nifti(path)[0].astype(int)
    values = PAINTED[contrast]
    mean = np.full(1024, values["outside"])
    tissues = {"white matter": WHITE, "grey matter": (*GREY, *BETWEEN), "fluid": FLUID}
    for tissue, members in tissues.items():
        mean[list(members)] = values[tissue]
    mean[0] = 0.02
    image = gaussian_filter(mean[labels], 0.5) + 0.03 * rng.standard_normal(labels.shape)
    return scan_of(image.astype(np.float32), np.eye(4)), labels


def scan_of(array, affine):
    """The Scan of a volume (D, H, W) in RAS with its affine (4, 4)."""
    middle = nib.affines.apply_affine(affine, (np.array(array.shape) - 1) / 2)
    return Scan(array, affine[:3, :3], middle, nib.Nifti1Image(array, affine), [])


# ---- rescans of a head: volumes (D, H, W) in RAS with their (4, 4) affine


def rotation(axis, degrees):
    """The matrix (3, 3) of a turn about one of the axes."""
    i, j = ((1, 2), (0, 2), (0, 1))[axis]
    angle, turn = np.radians(degrees), np.eye(3)
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    return turn


def turned(array, affine, axis, degrees, shift_mm=(0, 0, 0)):
    """The head turned about one of the axes through the middle of the field of view and shifted, on the same grid (cubic)."""
    return warped(array, affine, rotation(axis, degrees), shift_mm)


def warped(array, affine, change, shift_mm=(0, 0, 0)):
    """The head under a linear change (3, 3) of space about the middle of the field of view, shifted, on the same grid."""
    low = float(array.min())
    steps, start = to_voxels_before(array.shape, affine, array.shape, affine, change, shift_mm)
    result = affine_transform(array.astype(np.float32), steps, start, order=3, cval=low)
    return np.maximum(result, low), affine


def to_voxels_before(shape, affine, shape_before, affine_before, change, shift_mm):
    """(matrix (3, 3), offset) from the voxels of a rescan to those of the scan before `warped`, for affine_transform."""
    middle = nib.affines.apply_affine(affine_before, (np.array(shape_before) - 1) / 2)
    world = np.eye(4)  # where a place of the head was before
    world[:3, :3] = np.linalg.inv(change)
    world[:3, 3] = middle - world[:3, :3] @ (middle + shift_mm)
    matrix = np.linalg.inv(affine_before) @ world @ affine
    return matrix[:3, :3], matrix[:3, 3]


def labels_back(labels, affine, shape_before, affine_before, change, shift_mm):
    """The labels of a rescan on the grid of the scan before `warped`: of the nearest voxel."""
    steps, start = to_voxels_before(labels.shape, affine, shape_before, affine_before, change, shift_mm)
    back = np.linalg.inv(steps)
    return affine_transform(labels, back, -back @ start, shape_before, order=0)


def padded(array, affine, axis, before_mm, after_mm, mode="constant"):
    """The field of view larger, by background or (mode "edge") by its last slice."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[axis]
    widths = [(0, 0)] * 3
    widths[axis] = (round(before_mm / spacing), round(after_mm / spacing))
    more = {"constant_values": array.min()} if mode == "constant" else {}
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, axis] * widths[axis][0]
    return np.pad(array, widths, mode=mode, **more), moved


def cut_off(array, affine, axis, share_low=0.0, share_high=0.0):
    """The field of view without a share of it at the low or the high end of an axis."""
    n = array.shape[axis]
    first, last = round(n * share_low), n - round(n * share_high)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, axis] * first
    return array.take(range(first, last), axis), moved


def faceless(array, affine, brain_front, brain_middle):
    """The head with background where the face is: in front of voxel brain_front and below voxel brain_middle."""
    result = array.copy()
    result[:, brain_front:, :brain_middle] = array.min()
    return result, affine


def respaced(array, affine, spacing_mm):
    """The head with voxels of other sizes, anti-aliased."""
    old = np.linalg.norm(affine[:3, :3], axis=0)
    factor = np.array(spacing_mm) / old
    smooth = gaussian_filter(array.astype(np.float32), np.maximum(0, (factor - 1) / 2), mode="nearest")
    shape = tuple(np.floor(np.array(array.shape) / factor).astype(int))
    start = (factor - 1) / 2
    moved = affine.copy()
    moved[:3, :3] = affine[:3, :3] * factor
    moved[:3, 3] += affine[:3, :3] @ start
    return affine_transform(smooth, factor, start, output_shape=shape, order=1, mode="nearest"), moved


def noisy(array, affine, share, rng):
    """The head with Rician noise, its standard deviation a share of the brain's brightness."""
    deviation = share * np.percentile(array[array > np.median(array)], 60)
    real, imaginary = (rng.normal(0, deviation, array.shape) for _ in range(2))
    return np.hypot(array + real, imaginary).astype(np.float32), affine


def shaded(array, affine, strength):
    """The head under a smooth bias field of about 1 +- strength at the corners' half-way."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in array.shape), indexing="ij", sparse=True)
    return array * np.exp(strength * (x + 0.8 * y - z)), affine


def brightened(array, affine, gamma):
    """The head with another gamma."""
    top = float(array.max())
    return (np.maximum(array, 0) / top) ** np.float32(gamma) * top, affine


def thinned(array, affine, labels, share):
    """The head with one hippocampus thinner by a share of its volume, by the warp of degrade.atrophy, and the labels
    (D, H, W) after it: {label: volume in mm3, partial voxels counted in part}. labels: of that hippocampus."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    places, margin = np.argwhere(labels), np.ceil(_AROUND_MM / spacing).astype(int)
    low, high = np.maximum(places.min(0) - margin, 0), places.max(0) + 1 + margin
    box = tuple(map(slice, low, high))
    part, image = labels[box], array[box].astype(np.float32)
    field = inwards(part > 0, spacing) / spacing.reshape(3, 1, 1, 1)
    grid = np.indices(part.shape)

    def warped_labels(by_mm):
        where = grid - by_mm * field
        masks = ((label, (part == label).astype(np.float32)) for label in np.unique(part[part > 0]))
        return {int(label): map_coordinates(mask, where, order=1, mode="nearest").sum() for label, mask in masks}

    before = np.count_nonzero(part)
    by_mm = (
        brentq(lambda mm: 1 - share - sum(warped_labels(mm).values()) / before, -0.5, 3, xtol=1e-3) if share else 0.0
    )
    changed = array.astype(np.float32)
    changed[box] = map_coordinates(image, grid - by_mm * field, order=3, mode="nearest")
    voxel = float(abs(np.linalg.det(affine[:3, :3])))
    return changed, {label: float(count) * voxel for label, count in warped_labels(by_mm).items()}


def inverted(array, affine):
    """The head with dark and bright exchanged where it is not background."""
    top = np.percentile(array, 99.5)
    return np.where(array > 0.05 * top, np.clip(1.1 * top - array, 0, None), array).astype(np.float32), affine


# ---- degraded crops


def _intensities(part, strength):
    """A degradation by one part of the augmentation."""

    def change(image, label, rng):
        return PARTS[part][1](torch.from_numpy(image), rng, strength).numpy(), label, np.zeros(3)

    return change


def _shifted(image, label, rng):
    """The window off the hippocampus by 6 to 22 mm."""
    direction = rng.standard_normal(3)
    return image, label, direction / np.linalg.norm(direction) * rng.uniform(6, 22)


def _cut_short(image, label, rng):
    """A fifth to half of the field of view cut off, along one axis."""
    axis = int(rng.integers(3))
    gone, size = int(image.shape[axis] * rng.uniform(0.2, 0.55)), image.shape[axis]
    part = (slice(None),) * axis + (slice(gone, None) if rng.random() < 0.5 else slice(0, size - gone),)
    return image[part], label[part], np.zeros(3)


def _flipped(axis):
    def flip(image, label, rng):
        return np.flip(image, axis), np.flip(label, axis), np.zeros(3)

    return flip


def _lesion(image, label, rng):
    """The hippocampus and 1 to 3 mm around it taken out, and fluid in its place: no label is left."""
    gone = gaussian_filter(binary_dilation(label > 0, iterations=int(rng.integers(1, 4))).astype(np.float32), 0.7)
    fluid = np.percentile(image, 3) + rng.normal(0, 0.05 * image.std(), image.shape)
    return (image * (1 - gone) + fluid * gone).astype(np.float32), np.zeros_like(label), np.zeros(3)


# name: function of (image (D, H, W), label, rng) to (image, label, centre of the window in mm from its middle)
DEGRADATIONS = {
    "clean": lambda image, label, rng: (image, label, np.zeros(3)),
    "wrong side": _flipped(0),
    "noise": _intensities("noise", 1.5),
    "blur": _intensities("blur_mm", 4.0),
    "motion": _intensities("motion_mm", 3.0),
    "low resolution": _intensities("low_resolution_mm", 8.0),
    "bias field": _intensities("bias_field", 1.5),
    "gamma": _intensities("gamma", 4.0),
    "another contrast": _intensities("lookup_tables", 1),
    "shifted window": _shifted,
    "cut": _cut_short,
    "upside down": _flipped(2),
    "back to front": _flipped(1),
    "lesion": _lesion,
}
# what predict.py has further flags for
MISUSES = ("wrong side", "another contrast", "cut", "upside down", "back to front", "lesion")

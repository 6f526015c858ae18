"""The data: Decathlon folders and their checks, splits by case, the data sets of volumes and slices, augmentation.

A Decathlon folder holds dataset.json, imagesTr/<case>.nii.gz and labelsTr/<case>.nii.gz (0 background, 1 anterior,
2 posterior). Volumes are (D, H, W) arrays in RAS orientation (x to the right, y to the front, z up), 1 mm isotropic.
"""

import csv
import hashlib
import json
import math
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from common import UserError, require
from nifti import READ_ERRORS, normalise, read_nifti, spacing_mm

GET_DATA = "python get_data.py (the real data) or python phantom.py (synthetic volumes, then --data_root=phantom)"
PLANES = ("sagittal", "coronal", "axial")  # slices perpendicular to x, y and z
_SLICES_AGAIN = "make the slices again with: python data_aug.py"


class Case(NamedTuple):
    """One case's id and files."""

    id: str
    image: Path
    label: Path


class Volume(NamedTuple):
    """A case in memory: image float32, normalised, and label uint8, both (D, H, W) in RAS; spacing in mm."""

    id: str
    image: np.ndarray
    label: np.ndarray
    spacing_mm: tuple


# ---- folders


def case_id(path):
    """The file's name without .nii or .nii.gz."""
    name = Path(path).name
    return name.removesuffix(".gz").removesuffix(".nii")


def list_cases(root, max_cases=0):
    """The labelled cases of a Decathlon folder, sorted by id; max_cases > 0 keeps the first so many.

    Returns (cases, info), info being dataset.json's content. Raises UserError where the folder, dataset.json, an
    image or a label is missing.
    """
    root = Path(root)
    require(root.is_dir(), f"{root}: no such folder; get data with: {GET_DATA}")
    info = _dataset_json(root)
    images = {case_id(p): p for p in list_volumes(root / "imagesTr")}
    labels = {case_id(p): p for p in list_volumes(root / "labelsTr")}
    require(images, f"{root / 'imagesTr'}: no .nii.gz volumes in it; get data with: {GET_DATA}")
    for entry in info["training"]:
        name = case_id(entry["image"])
        require(
            name in images,
            f"{root / 'imagesTr' / name}.nii.gz is listed in dataset.json but missing; get the data again with: {GET_DATA}",
        )
    for name in sorted(images):
        require(
            name in labels,
            f"{images[name]} has no label; expected {root / 'labelsTr' / images[name].name}: add it or remove the image",
        )
    cases = [Case(name, images[name], labels[name]) for name in sorted(images)]
    return cases[:max_cases] if max_cases > 0 else cases, info


def _dataset_json(root):
    path = root / "dataset.json"
    require(path.is_file(), f"{path}: missing, so {root} is no Decathlon folder; get data with: {GET_DATA}")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        [case_id(entry["image"]) for entry in info["training"]]
        return info
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: expected JSON with a list "training" of image and label ({error!r}); get the data again with: {GET_DATA}'
        ) from None


def list_volumes(folder):
    """The NIfTI files of a folder, sorted, without hidden ones (such as macOS's ._ files); none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.endswith((".nii.gz", ".nii")) and not p.name.startswith("."))


def is_synthetic(info):
    """Whether dataset.json says that the data are synthetic phantoms."""
    return bool(info.get("synthetic", False))


def split_cases(cases, fold):
    """(training, validation) of sorted cases. fold -1: the first 80 % train; 0-4: nnU-Net's five folds, which are
    scikit-learn's KFold(5, shuffle=True, random_state=12345). Raises UserError where a side would be empty."""
    require(-1 <= fold <= 4, f"--fold={fold}: expected -1 (first 80 % train) or 0 to 4")
    n = len(cases)
    if fold == -1:
        validation = set(range(int(0.8 * n), n))
    else:
        order = np.arange(n)
        np.random.RandomState(12345).shuffle(order)
        validation = set(np.array_split(order, 5)[fold].tolist())
    train = [c for i, c in enumerate(cases) if i not in validation]
    require(
        train and validation,
        f"{n} cases cannot be split into training and validation (fold {fold}); expected at least 5",
    )
    return train, [cases[i] for i in sorted(validation)]


def describe_data(info, cases, train, val):
    """What a run or a set of slices was made from, for its config.json."""
    listing = "".join(f"{case.id} {case.image.stat().st_size} {case.label.stat().st_size}\n" for case in cases)
    return {
        "name": info.get("name", ""),
        "synthetic": is_synthetic(info),
        "listing_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "train_cases": [case.id for case in train],
        "val_cases": [case.id for case in val],
    }


def load_case(case):
    """Reads, checks and normalises a labelled case. Returns Volume. Raises UserError, see read_nifti, and where image
    and label do not match, a label value is not 0, 1 or 2, or the spacing is not 1 mm.
    """
    array, image = read_nifti(case.image)
    label, label_image = read_nifti(case.label)
    require(
        array.shape == label.shape,
        f"{case.label}: the label's shape {label.shape} is not the image's {array.shape}; correct one of them",
    )
    require(
        np.allclose(image.affine, label_image.affine, atol=1e-2),
        f"{case.label}: its affine is not that of {case.image}; correct one of them",
    )
    values = np.unique(label)
    require(
        np.isin(values, (0, 1, 2)).all(),
        f"{case.label}: expected the values 0, 1 and 2, got {values.tolist()[:8]}; correct the label",
    )
    spacing = spacing_mm(image)
    require(
        np.allclose(spacing, 1, atol=0.02),
        f"{case.image}: training expects 1 mm isotropic voxels, got {spacing} mm; resample it first",
    )
    require(array.min() < array.max(), f"{case.image}: every voxel has the same value; export it again")
    return Volume(case.id, normalise(array), label.astype(np.uint8), spacing)


def load_volumes(root, names):
    """The Volumes of the named cases of a Decathlon folder. Raises UserError, see load_case, and for an unknown name."""
    cases = {case.id: case for case in list_cases(root)[0]}
    for name in names:
        require(
            name in cases, f"{root}: no case {name}; name the --data_root that the run or the slices were made from"
        )
    return [load_case(cases[name]) for name in names]


# ---- data sets


class AugmentedDataset(torch.utils.data.Dataset):
    """Training images in memory, volumes or slices; an item is an augmented patch: image (1, *patch) float32, label
    (*patch) uint8.

    An item's key is (pass, index), as EpochSampler yields it, and its random numbers depend on (seed, pass, index)
    only: the same whatever the number of workers or the epoch that a run was resumed at.
    """

    def __init__(self, images, labels, patch, seed, augmentation):
        self.images, self.labels = images, labels
        self.patch, self.seed, self.augmentation = tuple(patch), seed, augmentation

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        number, index = key
        rng = np.random.default_rng([self.seed, number, index])
        return augment(self.images[index], self.labels[index], self.patch, rng, **self.augmentation)


class Slices(NamedTuple):
    """Slices in memory: images (N, H, W) float32 in [0, 1], masks (N, H, W) uint8, and the case and plane of each."""

    images: np.ndarray
    masks: np.ndarray
    cases: list
    planes: list


def read_index(folder):
    """(rows of index.csv as dicts, "number" an int; settings with "SIZE", "FOLD" and "DATA") of a folder that data_aug.py
    wrote.

    Raises UserError where it is missing or not finished, where index.csv and the files do not match, and where a case
    has slices on both sides.
    """
    folder, again = Path(folder), _SLICES_AGAIN
    require(folder.is_dir(), f"{folder}: no such folder; make it with: python data_aug.py")
    index = folder / "index.csv"
    require(index.is_file(), f"{index}: missing, so {folder} is not finished; complete it with: python data_aug.py")
    names = ("number", "case", "plane", "position", "augmentation", "parameters", "split")
    try:
        with open(index, newline="", encoding="utf-8") as file:
            rows = [{name: r[name] for name in names} | {"number": int(r["number"])} for r in csv.DictReader(file)]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        settings = {**settings, "SIZE": int(settings["SIZE"]), "FOLD": int(settings["FOLD"])}
        expected = {"train": set(settings["DATA"]["train_cases"]), "val": set(settings["DATA"]["val_cases"])}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{index}: it or settings.json beside it is damaged ({error!r}); {again}") from None
    both = expected["train"] & expected["val"]
    require(not both, f"{index}: {min(both, default='')} is both a training and a validation case; {again}")
    for row in rows:
        known = row["plane"] in PLANES and row["split"] in expected
        require(known, f"{index}: slice {row['number']}: unknown plane or split; {again}")
        fits = row["case"] in expected[row["split"]]
        require(fits, f"{index}: {row['case']} is no {row['split']} case by settings.json; {again}")
    for split in expected:
        require(any(row["split"] == split for row in rows), f"{index}: no {split} slices in it; {again}")
    for kind, name in (("images", "img"), ("masks", "mask")):
        there = {path.name for path in (folder / kind).glob("[!.]*.npy")}
        listed = {f"{name}_{row['number']:06d}.npy" for row in rows}
        for problem, names in (("missing", listed - there), ("not in index.csv", there - listed)):
            first = folder / kind / min(names, default="")
            require(not names, f"{first}: {problem} ({len(names)} such files); {again}")
    return rows, settings


def load_slice(folder, number, size):
    """(image float32, mask uint8), both (size, size), of one slice. Raises UserError for an array of another shape or type
    and for a mask with other values than 0, 1 and 2."""
    arrays = []
    for kind, name, kinds in (("images", "img", "f"), ("masks", "mask", "iu")):
        path = Path(folder) / kind / f"{name}_{number:06d}.npy"
        try:
            array = np.load(path, allow_pickle=False)
        except READ_ERRORS as error:
            raise UserError(f"{path}: not a readable .npy file ({type(error).__name__}); {_SLICES_AGAIN}") from None
        size_fits = array.shape == (size, size)
        require(size_fits, f"{path}: expected shape ({size}, {size}), got {array.shape}; {_SLICES_AGAIN}")
        finite = array.dtype.kind in kinds and np.isfinite(array).all()
        require(finite, f"{path}: expected finite numbers, got {array.dtype}; {_SLICES_AGAIN}")
        arrays.append(array)
    image, mask = arrays
    require(mask.min() >= 0 and mask.max() <= 2, f"{path}: expected values 0, 1 and 2; {_SLICES_AGAIN}")
    return image.astype(np.float32), mask.astype(np.uint8)


def load_slices(folder):
    """(training Slices, validation Slices, settings) of a folder that data_aug.py wrote. Raises UserError, see read_index
    and load_slice."""
    rows, settings = read_index(folder)
    size, parts = settings["SIZE"], []
    for split in ("train", "val"):
        chosen = [row for row in rows if row["split"] == split]
        images = np.empty((len(chosen), size, size), np.float32)
        masks = np.empty((len(chosen), size, size), np.uint8)
        for i, row in enumerate(chosen):
            images[i], masks[i] = load_slice(folder, row["number"], size)
        parts.append(Slices(images, masks, [row["case"] for row in chosen], [row["plane"] for row in chosen]))
    return *parts, settings


class EpochSampler:
    """Batches of keys (pass, index), each index once a pass, in an order that depends on (seed, pass) only.

    An epoch is one pass, or with few cases as many as make `min_steps` batches. Set `epoch`, and `start` (batches to
    leave out, those of a resumed epoch), before iterating. With several processes, number `rank` of `world` gets every
    world-th key of each batch; one for whom none is left gets the first, which its share of 0 takes out of the mean.
    """

    def __init__(self, length, batch_size, seed, min_steps=1, rank=0, world=1):
        self.length, self.batch_size, self.seed, self.epoch, self.start = length, batch_size, seed, 0, 0
        self.rank, self.world = rank, world
        self.batches = -(-length // batch_size)  # of a pass
        self.passes = max(1, -(-min_steps // self.batches))

    def __len__(self):
        return self.passes * self.batches

    def __iter__(self):
        drawn = None
        for step in range(self.start, len(self)):
            number, batch = self.epoch * self.passes + step // self.batches, step % self.batches
            if number != drawn:
                order, drawn = np.random.default_rng([self.seed, number]).permutation(self.length), number
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            mine = chosen[self.rank :: self.world]
            yield [(number, int(i)) for i in (mine if len(mine) else chosen[:1])]

    def share(self, step):
        """This process's part of a batch, times the number of processes: what its mean loss counts in their average."""
        size = min(self.batch_size, self.length - step % self.batches * self.batch_size)
        return len(range(self.rank, size, self.world)) / size * self.world


# ---- augmentation


def random_affine(rng, size, patch, rotation_degrees, scale, shift_voxels):
    """A random (n, n + 1) matrix for F.affine_grid (align_corners=True) that cuts a patch around the centre of an image
    of `size`, n = 2 or 3: rotated in each plane of two axes by up to rotation_degrees, scaled by up to 1 +- scale,
    shifted by up to shift_voxels along each axis.
    """
    n = len(size)
    planes = list(combinations(range(n), 2))[::-1]
    angles = np.radians(rng.uniform(-1, 1, len(planes)) * rotation_degrees)
    matrix = np.eye(n)
    for (i, j), angle in zip(planes, angles):
        turn = np.eye(n)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    matrix = matrix * np.exp(rng.uniform(-1, 1) * math.log1p(scale))
    # from the patch's coordinates in [-1, 1] to voxels, through the matrix, to the image's coordinates in [-1, 1]
    half_in, half_out = (np.maximum(np.array(s) - 1, 1) / 2 for s in (size, patch))
    theta = np.concatenate(
        [matrix * half_out / half_in[:, None], (rng.uniform(-1, 1, n) * shift_voxels / half_in)[:, None]], axis=1
    )
    # affine_grid wants (x, y, z) for the axes (W, H, D)
    return np.concatenate([theta[::-1, -2::-1], theta[::-1, -1:]], axis=1)


def augment(
    image,
    label,
    patch,
    rng,
    rotation_degrees=15.0,
    scale=0.15,
    shift_voxels=4.0,
    flip_axes="",
    intensity=0.25,
    gamma=0.3,
    noise=0.1,
    blur_mm=0.7,
):
    """An augmented patch of a volume (D, H, W) or slice (H, W): (1, *patch) float32 and (*patch) uint8 tensors.

    image float32, normalised; label integers; rng: numpy Generator. One resampling does rotation, scale, shift and
    flips, the image linearly, the label as the larger share of linear weights; beyond the image, edges are replicated.
    0 turns any of these off:
    flip_axes: axes of a volume, "xyz", to mirror (p = 1/2). intensity: contrast up to 1 +- and brightness up to +- so much
    (p = 1/2). gamma: an exponent between 1 + gamma and its inverse (p = 1/3). noise: largest standard deviation
    (p = 1/3). blur_mm: largest sigma of a Gaussian (p = 1/5).
    """
    theta = random_affine(rng, image.shape, patch, rotation_degrees, scale, shift_voxels)
    for axis in flip_axes:
        if rng.random() < 0.5:
            theta[:, 2 - "xyz".index(axis)] *= -1
    label = torch.from_numpy(label)
    channels = torch.stack([torch.from_numpy(image), (label == 1).float(), (label == 2).float()])[None]
    grid = F.affine_grid(
        torch.from_numpy(np.ascontiguousarray(theta, np.float32))[None], [1, 3, *patch], align_corners=True
    )
    image, anterior, posterior = F.grid_sample(channels, grid, padding_mode="border", align_corners=True)[0]
    label = torch.where(anterior + posterior > 0.5, torch.where(posterior > anterior, 2, 1), 0).to(torch.uint8)
    if rng.random() < 0.5 and intensity:
        image = image * (1 + rng.uniform(-intensity, intensity)) + rng.uniform(-intensity, intensity)
    if rng.random() < 1 / 3 and gamma:
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low).clamp_min(1e-6)) ** float((1 + gamma) ** rng.uniform(-1, 1)) * (
            high - low
        ) + low
    if rng.random() < 1 / 5 and blur_mm:
        sigma = rng.uniform(0.3, 1) * blur_mm
        image = torch.from_numpy(gaussian_filter(image.numpy(), sigma, mode="nearest", truncate=3))
    if rng.random() < 1 / 3 and noise:
        image = image + torch.from_numpy(rng.standard_normal(tuple(patch), np.float32)) * rng.uniform(0, noise)
    return image[None], label

"""Transforms the slices that data_aug.py stores, and reads them again, with checks, and the grids from which they were
cut."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

from hippo.data.cases import load_volumes
from hippo.data.nifti import READ_ERRORS
from hippo.errors import UserError, require

import numpy as np
from scipy.ndimage import affine_transform

PLANES = ("sagittal", "coronal", "axial")  # slices perpendicular to x, y and z
INDEX_COLUMNS = ("number", "case", "plane", "position", "augmentation", "parameters", "split")  # columns of index.csv
_SLICES_AGAIN = "make the slices again with: python data_aug.py"


class Slices(NamedTuple):
    """Slices in memory: images (N, H, W) float32 in [0, 1], masks (N, H, W) uint8, and the case and plane of each
    slice."""

    images: np.ndarray
    masks: np.ndarray
    cases: list
    planes: list


def read_index(folder):
    """Reads the index of a folder that data_aug.py wrote. Returns (rows, settings).

    rows: rows of index.csv as dicts, with "number" as int. settings: the constants, with "SIZE", "FOLD" and "DATA".
    Raises UserError if the folder is missing or unfinished, if index.csv and the files do not match, or if a case has
    slices in both training and validation.
    """
    folder, again = Path(folder), _SLICES_AGAIN
    require(folder.is_dir(), f"{folder}: no such folder; make it with: python data_aug.py")
    index = folder / "index.csv"
    require(index.is_file(), f"{index}: missing, so {folder} is not finished; complete it with: python data_aug.py")
    try:
        with open(index, newline="", encoding="utf-8") as file:
            rows = [
                {name: r[name] for name in INDEX_COLUMNS} | {"number": int(r["number"])} for r in csv.DictReader(file)
            ]
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
    for split, cases in expected.items():
        there = any(row["split"] == split for row in rows)
        require(there or not cases and split == "val", f"{index}: no {split} slices in it; {again}")
    for kind, name in (("images", "img"), ("masks", "mask")):
        there = {path.name for path in (folder / kind).glob("[!.]*.npy")}
        listed = {f"{name}_{row['number']:06d}.npy" for row in rows}
        for problem, names in (("missing", listed - there), ("not in index.csv", there - listed)):
            first = folder / kind / min(names, default="")
            require(not names, f"{first}: {problem} ({len(names)} such files); {again}")
    return rows, settings


def load_slice(folder, number, size):
    """Loads one slice. Returns (image float32, mask uint8), both (size, size).

    Raises UserError for an array of another shape or type, and for a mask with values other than 0, 1 and 2.
    """
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
    """Loads a folder that data_aug.py wrote. Returns (training Slices, validation Slices, settings).

    Raises UserError, see read_index and load_slice.
    """
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


def select(slices, indices):
    """Returns the Slices at the given indices."""
    chosen = list(indices)
    lists = ([values[i] for i in chosen] for values in (slices.cases, slices.planes))
    return type(slices)(slices.images[chosen], slices.masks[chosen], *lists)


def first_cases(slices, n):
    """Returns the Slices of the first n cases in sorted order."""
    kept = set(sorted(set(slices.cases))[:n])
    return select(slices, (i for i, case in enumerate(slices.cases) if case in kept))


def slice_grids(root, volumes, names, size):
    """Returns the grids from which slices were cut: {case: {plane: (pixel size in mm, shape of the original slices)}}.

    Covers volumes in memory and further cases by name. size: pixels along each side of the stored slices.
    """
    known = {volume.id for volume in volumes}
    grids = {}
    for volume in [*volumes, *load_volumes(root, sorted(names - known))]:
        shape = np.array(volume.image.shape)
        mm = shape * volume.spacing_mm / size
        grids[volume.id] = {p: (tuple(np.delete(mm, a)), tuple(np.delete(shape, a))) for a, p in enumerate(PLANES)}
    return grids


def augment_slice(image, label, kind, parameters):
    """Transforms a stored slice (H, W) about its centre, with replicated edges. Returns (image float32, label uint8).

    kind: none, flip (along the first axis), rotation (parameters: degrees) or affine (scale, and dx and dy in pixels).
    """
    if kind == "flip":
        image, label = image[::-1], label[::-1]
    elif kind != "none":
        angle = np.radians(parameters.get("degrees", 0.0))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn = turn / parameters.get("scale", 1.0)
        centre = (np.array(image.shape) - 1) / 2
        shift = np.array([parameters.get("dx", 0.0), parameters.get("dy", 0.0)])
        offset = centre - turn @ (centre + shift)
        image = affine_transform(image, turn, offset, order=1, mode="nearest")
        label = affine_transform(label, turn, offset, order=0, mode="nearest")
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label, np.uint8)

"""Reads and checks Decathlon folders, and splits their cases.

A Decathlon folder holds dataset.json, imagesTr/<case>.nii.gz and labelsTr/<case>.nii.gz (0 background, 1 anterior, 2
posterior). Volumes are (D, H, W) arrays in RAS orientation (x to the right, y to the front, z up), 1 mm isotropic.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from hippo.data.formats import ENDINGS, has_ending
from hippo.data.intensity import normalise
from hippo.data.nifti import read_nifti, spacing_mm
from hippo.errors import UserError, require
from hippo.files import digest

import numpy as np

LABELS = {1: "anterior", 2: "posterior"}
WHOLE = {1: "hippocampus"}  # labels of data sets that do not separate the parts
GET_DATA = "python get_data.py (the real data) or python phantom.py (synthetic volumes, then --data_root=phantom)"


class Case(NamedTuple):
    """The id and the files of a case."""

    id: str
    image: Path
    label: Path


class Volume(NamedTuple):
    """A case in memory: image float32, normalised, and label uint8, both (D, H, W) in RAS; spacing in mm."""

    id: str
    image: np.ndarray
    label: np.ndarray
    spacing_mm: tuple


def case_id(path):
    """Returns the file name without .nii, .nii.gz and so on, see formats.ENDINGS."""
    name = Path(path).name
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), name)


def list_cases(root, max_cases=0):
    """Lists the labelled cases of a Decathlon folder, sorted by id; max_cases > 0 keeps the first max_cases.

    Returns (list of Case, info), where info is the content of dataset.json. Raises UserError if the folder, dataset.json, an
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
    _check_split(info, images, root)
    cases = [Case(name, images[name], labels[name]) for name in sorted(images)]
    return cases[:max_cases] if max_cases > 0 else cases, info


def _dataset_json(root):
    """Returns the content of dataset.json. Raises UserError if it is missing or damaged."""
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


def _check_split(info, names, root):
    """Raises UserError if "persons" or "validation" in dataset.json do not match the cases."""
    path, persons, validation = Path(root) / "dataset.json", info.get("persons"), info.get("validation")
    if persons is not None:
        fits = isinstance(persons, dict) and set(persons) == set(names)
        require(
            fits, f'{path}: expected "persons" with each case of imagesTr and no other, as {{"{min(names)}": "sub-01"}}'
        )
    if validation is not None:
        fits = isinstance(validation, list) and validation and set(map(str, validation)) <= set(names)
        require(fits, f'{path}: expected "validation" to list cases of imagesTr, as ["{min(names)}"]')


def count_labels(info, root):
    """Returns the number of labels of a data set according to dataset.json: 2 (see LABELS) or 1 (see WHOLE). Raises
    UserError for other numbers."""
    labels = info.get("labels", dict.fromkeys("012"))
    found = sorted(labels) if isinstance(labels, dict) else labels
    expected = (
        f'{Path(root) / "dataset.json"}: expected labels {{"0": .., "1": ..}} or "0" to "2", got {found}; correct it'
    )
    require(found in (["0", "1"], ["0", "1", "2"]), expected)
    return len(found) - 1


def labels_of(count):
    """Returns {value: name} for a number of labels, 1 or 2."""
    return LABELS if count == len(LABELS) else WHOLE


def list_volumes(folder):
    """Returns the sorted volumes in a folder, without hidden files (such as macOS's ._ files); empty if the folder
    does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if has_ending(p) and not p.name.startswith("."))


def is_synthetic(info):
    """Whether dataset.json says that the data are synthetic phantoms."""
    return bool(info.get("synthetic", False))


def split_cases(cases, fold, info=None):
    """Splits sorted cases, or their names, into (training, validation): two lists.

    fold: -1: the first 80 % train; 0-4: nnU-Net's five folds, which are scikit-learn's KFold(5, shuffle=True,
    random_state=12345); -2: all train. info: content of dataset.json. If it has "persons", {case: person}, persons are
    split instead of cases. If it has "validation", a list of cases, fold -1 validates on those. Raises UserError if a
    side would be empty, but for fold -2, or if a person would be on both sides.
    """
    require(-2 <= fold <= 4, f"--fold={fold}: expected -1 (first 80 % train), 0 to 4, or -2 (all train)")
    info = info or {}
    names = [getattr(case, "id", case) for case in cases]
    persons = [info.get("persons", {}).get(name, name) for name in names]  # of each case; by default each has its own
    people = list(dict.fromkeys(persons))  # each once, in the order of the cases
    n = len(people)
    if fold == -2:
        return list(cases), []
    if fold == -1 and "validation" in info:
        validates = [name in info["validation"] for name in names]
        both = {p for p, v in zip(persons, validates) if v} & {p for p, v in zip(persons, validates) if not v}
        require(
            not both, f"dataset.json: {sorted(both)[:1]} has cases in training and in validation; keep them together"
        )
    else:
        if fold == -1:
            chosen = {*range(int(0.8 * n), n)}
        else:
            order = np.arange(n)
            np.random.RandomState(12345).shuffle(order)
            chosen = {*np.array_split(order, 5)[fold].tolist()}
        held_out = {people[i] for i in chosen}
        validates = [person in held_out for person in persons]
    require(
        0 < sum(validates) < len(cases),
        f"{len(cases)} cases{f' of {n} people' * (n < len(cases))} cannot be split into training and validation (fold {fold}); "
        "expected at least 5, and some on either side",
    )
    return tuple([case for case, v in zip(cases, validates) if v == side] for side in (False, True))


def describe_data(info, cases, train, val):
    """Returns the description of the data of a run, or of a set of slices, for config.json: a dict of plain values. Its
    checksum covers the content of every file."""
    listing = "".join(f"{case.id} {digest(case.image)} {digest(case.label)}\n" for case in cases)
    return {
        "name": info.get("name", ""),
        "synthetic": is_synthetic(info),
        "labels": count_labels(info, ""),
        "listing_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "train_cases": [case.id for case in train],
        "val_cases": [case.id for case in val],
    }


def load_case(case, n_labels=2):
    """Reads, checks and normalises a labelled case. Returns a Volume.

    Intensities are clipped and get zero mean and unit variance, see intensity.normalise. Raises UserError, see
    read_nifti, and if image and label do not match, a label value is not 0 to `n_labels`, or the spacing is not 1 mm.
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
        np.isin(values, range(n_labels + 1)).all(),
        f"{case.label}: expected the values {'0, 1 and 2' if n_labels == 2 else '0 and 1'}, got {values.tolist()[:8]}; "
        "correct the label, or the labels of dataset.json",
    )
    spacing = spacing_mm(image)
    require(
        np.allclose(spacing, 1, atol=0.02),
        f"{case.image}: training expects 1 mm isotropic voxels, got {spacing} mm; resample it first",
    )
    require(array.min() < array.max(), f"{case.image}: every voxel has the same value; export it again")
    return Volume(case.id, normalise(array), label.astype(np.uint8), spacing)


def load_volumes(root, names):
    """Loads the named cases of a Decathlon folder as Volumes. Raises UserError, see load_case, and for an unknown
    name."""
    listed, info = list_cases(root)
    cases, n_labels = {case.id: case for case in listed}, count_labels(info, root)
    for name in names:
        require(
            name in cases, f"{root}: no case {name}; name the --data_root that the run or the slices were made from"
        )
    return [load_case(cases[name], n_labels) for name in names]

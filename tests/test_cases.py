"""Decathlon folders: listing, checks, splits."""

import json
import os
import shutil

from hippo.data.cases import Case, is_synthetic, list_cases, load_case, split_cases
from hippo.errors import UserError

import numpy as np
import pytest
from conftest import DATA

VOLUME = np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8)


@pytest.fixture
def folder(phantoms, tmp_path):
    """A copy of the phantoms that a test may break."""
    return shutil.copytree(phantoms, tmp_path / "données 1")


def ids(cases):
    return [case.id for case in cases]


def test_lists_sorted_cases(phantoms):
    cases, info = list_cases(phantoms)
    assert ids(cases) == [f"phantom_{i:03d}" for i in range(1, 9)] and is_synthetic(info)
    assert ids(list_cases(phantoms, max_cases=3)[0]) == ids(cases)[:3]


def test_ignores_hidden_files(folder):
    (folder / "imagesTr" / "._phantom_001.nii.gz").write_bytes(b"mac")
    assert len(list_cases(folder)[0]) == 8


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda f: shutil.rmtree(f), "no such folder.*get_data.py"),
        (lambda f: [shutil.rmtree(f), f.mkdir()], "dataset.json: missing.*get_data.py"),
        (lambda f: (f / "dataset.json").write_text("{"), "dataset.json"),
        (lambda f: (f / "dataset.json").write_text('{"training": [3]}'), "dataset.json"),
        (lambda f: shutil.rmtree(f / "imagesTr"), "imagesTr: no .nii.gz"),
        (lambda f: (f / "labelsTr" / "phantom_002.nii.gz").unlink(), "phantom_002.nii.gz has no label"),
        (
            lambda f: (f / "imagesTr" / "phantom_002.nii.gz").unlink(),
            "phantom_002.nii.gz is listed in dataset.json but missing",
        ),
    ],
)
def test_broken_folders(folder, break_it, words):
    break_it(folder)
    with pytest.raises(UserError, match=words):
        list_cases(folder)


def test_splits_are_by_case_and_disjoint():
    cases = list(range(260))
    train, validation = split_cases(cases, -1)
    assert train == cases[:208] and validation == cases[208:]
    seen = []
    for fold in range(5):
        train, validation = split_cases(cases, fold)
        assert len(validation) == 52 and not set(train) & set(validation) and sorted(train + validation) == cases
        seen += validation
    assert sorted(seen) == cases
    with pytest.raises(UserError, match="cannot be split"):
        split_cases(cases[:1], -1)


def test_folds_are_nnunets():
    order = np.arange(260)
    np.random.RandomState(12345).shuffle(order)
    for n in (260, 23):
        if n == 23:
            order = np.arange(23)
            np.random.RandomState(12345).shuffle(order)
        sizes = np.full(5, n // 5) + (np.arange(5) < n % 5)
        for fold in range(5):
            start = sizes[:fold].sum()
            assert split_cases(list(range(n)), fold)[1] == sorted(order[start : start + sizes[fold]])


@pytest.mark.parametrize(
    "label, words",
    [
        (np.zeros((6, 7, 9), np.uint8), "shape"),
        (np.full((6, 7, 8), 3, np.uint8), "expected the values 0, 1 and 2"),
        (np.full((6, 7, 8), 0.5), "expected the values 0, 1 and 2"),
        (np.full((6, 7, 8), -1, np.int16), "expected the values 0, 1 and 2"),
    ],
)
def test_bad_labels(nifti, label, words):
    with pytest.raises(UserError, match=f"label.nii.gz.*{words}"):
        load_case(Case("x", nifti("image.nii.gz", VOLUME), nifti("label.nii.gz", label)))


def test_bad_images(nifti):
    label = nifti("label.nii.gz", np.zeros((6, 7, 8), np.uint8))
    with pytest.raises(UserError, match="flat.nii.gz.*same value"):
        load_case(Case("x", nifti("flat.nii.gz", VOLUME * 0 + 3), label))
    with pytest.raises(UserError, match="affine is not that of"):
        load_case(Case("x", nifti("image.nii.gz", VOLUME, np.diag([1, 1, -1, 1])), label))
    coarse = np.diag([1, 1, 3, 1])
    with pytest.raises(UserError, match="1 mm isotropic"):
        load_case(
            Case(
                "x", nifti("image.nii.gz", VOLUME, coarse), nifti("label.nii.gz", np.zeros((6, 7, 8), np.uint8), coarse)
            )
        )


def test_float_labels_with_whole_values_are_fine(nifti):
    label = np.zeros((6, 7, 8), np.float32)
    label[2:4, 3, 3] = 1, 2
    volume = load_case(Case("x", nifti("image.nii.gz", VOLUME), nifti("label.nii.gz", label)))
    assert volume.label.dtype == np.uint8 and np.array_equal(volume.label, label)


def test_inputs_are_never_modified(folder):
    for path in folder.rglob("*.nii.gz"):
        os.chmod(path, 0o444)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for case in list_cases(folder)[0]:
        load_case(case)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.data
def test_the_real_data():
    cases, info = list_cases(DATA)
    assert len(cases) == 260 and not is_synthetic(info)
    train, validation = split_cases(cases, -1)
    assert validation[0].id == "hippocampus_322" and "hippocampus_338" in ids(validation)
    for case in cases[::20]:
        volume = load_case(case)
        assert set(np.unique(volume.label)) == {0, 1, 2} and volume.spacing_mm == (1, 1, 1)


def test_dataset_json_is_not_trusted_for_paths(folder):
    info = json.loads((folder / "dataset.json").read_text())
    info["training"].append({"image": "../../etc/passwd", "label": "x"})
    (folder / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="passwd"):
        list_cases(folder)

"""Crops from whole heads with masks, and splits by person."""

import csv
import json
import shutil

import crops
import phantom
import train_3d
from hippo.data.cases import list_cases, load_case, split_cases
from hippo.errors import UserError

import nibabel as nib
import numpy as np
import pytest
from conftest import one_error_line


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A BIDS data set of two phantoms' heads, and masks of their hippocampi."""
    root = tmp_path_factory.mktemp("heads") / "study"
    for i in (1, 2):
        (root / f"sub-{i:02d}/anat").mkdir(parents=True)
        masks = root / f"derivatives/masks/sub-{i:02d}"
        masks.mkdir(parents=True)
        path = root / f"sub-{i:02d}/anat/sub-{i:02d}_T1w.nii.gz"
        phantom.write_head(path, root / "labels.nii.gz", np.random.default_rng([0, 1, i - 1]))
        labels = nib.load(root / "labels.nii.gz")
        for side, values in (("L", (1, 2)), ("R", (3, 4))):
            mask = np.isin(np.asarray(labels.dataobj), values).astype(np.uint8) * 255
            nib.save(nib.Nifti1Image(mask, labels.affine), masks / f"sub-{i:02d}_hemi-{side}_mask.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "Heads", "BIDSVersion": "1.8.0"}')
    return root


@pytest.mark.promise("splits")
def test_crops_hold_their_masks_and_persons(script, study, tmp_path):
    out = tmp_path / "crops"
    how = (study, f"--masks={study}/derivatives/masks", f"--out_dir={out}", "--least_inside=0.5", "--device=cpu")
    code, text, err = script(crops, *how, "--validation=02")
    assert code == 0 and "4 crops of 2 people" in text, err
    cases, info = list_cases(out)
    assert [case.id for case in cases] == ["sub-01_hemi-L", "sub-01_hemi-R", "sub-02_hemi-L", "sub-02_hemi-R"]
    train, val = split_cases(cases, -1, info)
    assert [case.id[:6] for case in val] == ["sub-02"] * 2 and len(train) == 2
    volumes = [load_case(case, 1) for case in cases]
    with open(out / "crops.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for volume, row in zip(volumes, rows):
        assert volume.image.shape == (36, 52, 36) and set(np.unique(volume.label)) == {0, 1}
        mask = nib.load(
            study / f"derivatives/masks/{row['person']}/{row['person']}_hemi-{row['side'][0].upper()}_mask.nii.gz"
        )
        whole = np.count_nonzero(mask.dataobj)
        assert volume.label.sum() == pytest.approx(whole * float(row["inside"]), rel=0.05)
        inner = volume.image[volume.label > 0]  # grey, between fluid and white matter
        assert -1 < inner.mean() < 1
    code, _, err = script(
        train_3d,
        f"--data_root={out}",
        f"--out_dir={tmp_path / 'run'}",
        "--epochs=1",
        "--min_steps=1",
        "--init=pretrained/heads_3d.pth",
        "--ema=0",
    )
    assert code == 0, err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["labels"] == ["hippocampus"] and set(metrics["cases"]) == {"sub-02_hemi-L", "sub-02_hemi-R"}


@pytest.mark.promise("splits")
def test_persons_stay_on_one_side_of_every_split():
    names = [f"sub-{i:02d}_{side}" for i in range(9) for side in "LR"]
    info = {"persons": {name: name[:6] for name in names}}
    for fold in (-1, 0, 1, 2, 3, 4):
        train, val = split_cases(names, fold, info)
        assert train and val and not {n[:6] for n in train} & {n[:6] for n in val} and len(train) + len(val) == 18
    with pytest.raises(UserError, match="has cases in training and in validation"):
        split_cases(names, -1, info | {"validation": names[:3]})


def test_listings_that_do_not_fit_are_refused(phantoms, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantoms, root)
    info = json.loads((root / "dataset.json").read_text())
    names = [path.name[:-7] for path in sorted((root / "imagesTr").iterdir())]
    everyone = {name: "x" for name in names}
    for wrong in (
        {"persons": names},
        {"persons": {names[0]: "a"}},
        {"persons": everyone | {"z": "x"}},
        {"validation": names[0]},
        {"validation": []},
        {"validation": [f"{names[0]}.nii.gz"]},
    ):
        (root / "dataset.json").write_text(json.dumps(info | wrong))
        with pytest.raises(UserError, match="dataset.json: expected"):
            list_cases(root)
    (root / "dataset.json").write_text(json.dumps(info | {"persons": everyone, "validation": names[:1]}))
    assert len(list_cases(root)[0]) == len(names)


def test_mistakes_are_one_line(script, study, tmp_path):
    masks, out = study / "derivatives/masks", f"--out_dir={tmp_path / 'out'}"
    one_error_line(script(crops, tmp_path, f"--masks={masks}", out), "expected one BIDS data set")
    one_error_line(script(crops, study, "--masks=none", out), "--masks=none")
    some = (study, f"--masks={masks}", out, "--participant_label=01")
    code, _, err = script(crops, *some, "--left=*none*")
    assert code == 2 and "no left mask in" in err and "no crop was written" in err and "Traceback" not in err
    code, _, err = script(crops, *some, "--left=*mask*")
    assert code == 2 and "2 left masks fit" in err and "Traceback" not in err
    code, _, err = script(
        crops, *some, "--right=*none*"
    )  # the left one alone would be of a person unknown to any split
    assert code == 2 and not list((tmp_path / "out").rglob("*.nii.gz"))
    code, _, err = script(crops, *some, "--parts=True")
    assert code == 2 and "expected 0, 1 (anterior) and 2 (posterior)" in err and "Traceback" not in err
    other = tmp_path / "masks"
    shutil.copytree(masks, other)
    path = other / "sub-01/sub-01_hemi-L_mask.nii.gz"
    image = nib.load(path)
    nib.save(image.slicer[1:], path)
    code, _, err = script(crops, study, f"--masks={other}", out, "--participant_label=01")
    assert code == 2 and "not on the grid of" in err and "Traceback" not in err

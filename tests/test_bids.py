"""BIDS data sets in, and BIDS derivatives out."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import predict
from hippo.errors import UserError
from hippo.options import configure
from hippo.study import bids
from hippo.study.inputs import find_t1

import nibabel as nib
import numpy as np
import pytest
from runs import leftovers

VALIDATOR = shutil.which("bids-validator-deno", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def test_the_scans_of_a_bids_data_set(study):
    items = find_t1(study)
    assert [(item.path.name, item.participant_id, item.session_id) for item in items] == [
        ("sub-01_ses-1_run-1_T1w.nii.gz", "sub-01", "ses-1"),
        ("sub-01_ses-1_run-2_T1w.nii.gz", "sub-01", "ses-1"),
        ("sub-01_ses-2_T1w.nii.gz", "sub-01", "ses-2"),
        ("sub-02_T1w.nii.gz", "sub-02", ""),
    ]
    for labels in ("02", "sub-02", "['02']", ["02"]):
        assert [item.participant_id for item in find_t1(study, labels)] == ["sub-02"]
    assert [item.path.name for item in find_t1(study, "01,02", "2")] == ["sub-01_ses-2_T1w.nii.gz"]
    with pytest.raises(UserError, match="no T1-weighted scan of sub-09; there are sub-01, sub-02"):
        find_t1(study, "['01', '09']")
    with pytest.raises(UserError, match="no T1-weighted scan of ses-3; there are ses-1, ses-2"):
        find_t1(study, "", "3")
    shutil.rmtree(study / "sub-01")
    with pytest.raises(UserError, match="no T1-weighted scan of ses-1; there are none with ses-"):
        find_t1(study, "", "1")
    shutil.rmtree(study / "sub-02")
    with pytest.raises(UserError, match="without T1-weighted scans"):
        find_t1(study)


def test_a_study_that_lacks_its_description_is_told(study, tmp_path, capsys):
    cfg = configure(vars(predict), [str(study), f"--out_dir={tmp_path / 'out'}"], inputs="scans")
    assert predict.find_inputs(cfg)[1] and not capsys.readouterr().out
    (study / "dataset_description.json").unlink()
    items, source, _ = predict.find_inputs(cfg)
    assert "no dataset_description.json, so every image in it is taken" in capsys.readouterr().out
    assert not source and len(items) > len(find_t1(study))


@pytest.mark.parametrize(
    "name, kind, expected",
    [
        ("sub-1/anat/sub-1_T1w", "dseg", "sub-1/anat/sub-1_space-orig_seg-hippocampus_dseg"),
        (
            "sub-1/anat/sub-1_acq-x_run-2_T1w",
            "probseg",
            "sub-1/anat/sub-1_acq-x_run-2_space-orig_seg-hippocampus_probseg",
        ),
        (
            "sub-1/ses-a/anat/sub-1_ses-a_space-MNI152_desc-preproc_T1w",
            "dseg",
            "sub-1/ses-a/anat/sub-1_ses-a_space-MNI152_seg-hippocampus_desc-preproc_dseg",
        ),
        (
            "sub-1/anat/sub-1_desc-preproc_T1w",
            "uncertainty",
            "sub-1/anat/sub-1_space-orig_seg-hippocampus_desc-preproc_uncertainty",
        ),
    ],
)
def test_names_of_derivatives(name, kind, expected):
    assert bids.output_name(name, kind) == expected


def test_bids_derivatives(run_study, study, tmp_path):
    before = {path: path.read_bytes() for path in study.rglob("*.*") if path.is_file()}
    code, out, err = run_study(study, "--probabilities=True")
    assert code == 0 and "4 segmentations and volumes.tsv" in out, err
    assert {path: path.read_bytes() for path in study.rglob("*.*") if path.is_file()} == before
    out = tmp_path / "out"
    stem = "sub-01/ses-1/anat/sub-01_ses-1_run-2_space-orig_seg-hippocampus"
    for kind, channels in (("dseg", ()), ("probseg", (4,))):
        image = nib.load(out / f"{stem}_{kind}.nii.gz")
        source = nib.load(study / "sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w.nii.gz")
        assert image.shape == (*source.shape, *channels) and np.array_equal(image.affine, source.affine)
        described = json.loads((out / f"{stem}_{kind}.json").read_text())
        assert described["Sources"] == ["bids:raw:sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w.nii.gz"]
    assert described["LabelMap"] == ["L-ant", "L-post", "R-ant", "R-post"]
    with open(out / "volumes.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["participant_id"], row["session_id"]) for row in rows] == [
        ("sub-01", "ses-1"),
        ("sub-01", "ses-1"),
        ("sub-01", "ses-2"),
        ("sub-02", "n/a"),
    ]
    assert list(rows[0]) == list(json.loads((out / "volumes.json").read_text()))
    assert all(value for row in rows for value in row.values())
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["License"] == "CC0"
    assert description["GeneratedBy"][0].keys() >= {"Name", "Version", "Commit", "Models"}
    with open(out / "seg-hippocampus_dseg.tsv", newline="") as file:
        assert [row["index"] for row in csv.DictReader(file, delimiter="\t")] == list("1234")
    assert len(list((out / "figures").glob("*.png"))) == 4 and (out / "report.html").is_file()
    assert [p.name for p in leftovers(out)] == [".bidsignore"]


def test_a_crop_in_a_bids_data_set_is_numbered_by_its_side(run_study, study, tmp_path):
    code, _, err = run_study(study, "--participant_label=02", "--side=right")
    assert code == 0, err
    labels = np.asarray(nib.load(next((tmp_path / "out").rglob("*_dseg.nii.gz"))).dataobj)
    assert set(np.unique(labels)) <= {0, 3, 4} and labels.any()


@pytest.mark.promise("bids")
@pytest.mark.skipif(not VALIDATOR, reason="no bids-validator-deno (requirements-dev.txt)")
def test_the_official_validator(run_study, study, tmp_path):
    run_study(study, "--probabilities=True", "--profile=True")
    assert (tmp_path / "out/change.tsv").is_file() and (tmp_path / "out/profiles.tsv").is_file()
    result = subprocess.run([VALIDATOR, "--format=json", str(tmp_path / "out")], capture_output=True, text=True)
    if "issues" not in result.stdout:
        pytest.skip(f"the validator does not run here: {result.stderr[-200:]}")
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert not [issue for issue in issues if issue.get("severity") == "error"], issues


def test_the_arguments_of_a_bids_app():
    assert bids.from_app(["/in", "/out", "participant", "--participant_label", "01", "02", "--workers=2"]) == [
        "/in",
        "--out_dir=/out",
        "--participant_label=01,02",
        "--workers=2",
    ]
    assert bids.from_app(["/in", "/out", "group"]) == ["--collect=True", "--out_dir=/out"]
    assert bids.from_app(["a.nii", "--workers=2"]) == ["a.nii", "--workers=2"]

"""Faults between files, headers and callers, each after somebody's public report: what was silent is said, or mended."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import predict
import viz
from hippo import files, segmenter
from hippo.errors import UserError
from hippo.heads import save
from hippo.options import configure, run_script
from hippo.study import batch
from hippo.study.inputs import find_items, find_t1, left_out
from hippo.study.records import RECORDS
from hippo.study.volumes import load_etivs

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, one_error_line
from test_sharing import table

CPU = torch.device("cpu")
CROP = ROOT / "Task04_Hippocampus/imagesTr/hippocampus_338.nii.gz"


# ---- one scan's failure ends no batch


@pytest.mark.promise("rows")
def test_an_unforeseen_error_is_a_row_with_its_traceback(run_study, scans, tmp_path, monkeypatch):
    real = segmenter.segment

    def segment(models, locator, scan, *rest):
        if "phantom_002" in scan.image.get_filename():
            raise KeyError("nobody thought of this")
        return real(models, locator, scan, *rest)

    monkeypatch.setattr(segmenter, "segment", segment)
    code, text, err = run_study(scans, "--pictures=False")
    assert code == 2 and "2 segmentations" in text and "phantom_002" in err and "KeyError" in err
    rows = table(tmp_path / "out" / "volumes.csv")
    assert [("failed: KeyError" in row["flags"], bool(row["total_mm3"])) for row in rows] == [
        (False, True),
        (True, False),
        (False, True),
    ]
    record = json.loads((tmp_path / "out" / RECORDS / "scans" / "phantom_002.json").read_text())
    assert "Traceback" in record["traceback"] and "nobody thought of this" in record["traceback"]


@pytest.mark.promise("rows")
@pytest.mark.skipif(os.name == "nt", reason="names of 255 bytes")
def test_a_long_name_and_what_cannot_be_written_are_rows(run_study, scans, tmp_path):
    fits, too_long = "sub-0001_v" + "v" * 225, "sub-0002_v" + "v" * 238
    for stem in (fits, too_long):
        shutil.copy(scans / "phantom_001.nii.gz", scans / f"{stem}.nii.gz")
    run_study(scans / "phantom_001.nii.gz", "--pictures=False")
    (tmp_path / "out" / "phantom_002_seg.nii.gz").mkdir()  # a folder where a file should be
    code, _, err = run_study(scans, "--pictures=False")
    assert code == 2 and err.count("could not be written") == 2 and "Traceback" not in err
    done = {Path(row["scan"]).name[:11]: bool(row["total_mm3"]) for row in table(tmp_path / "out" / "volumes.csv")}
    expected = {"phantom_001": True, "phantom_002": False, "phantom_003": True, fits[:11]: True, too_long[:11]: False}
    assert done == expected
    assert (tmp_path / "out" / f"{fits}_seg.nii.gz").is_file()


@pytest.mark.promise("rows")
def test_a_full_disk_ends_the_run(run_study, scans, monkeypatch):
    seen = []

    def save_labels(path, *_):
        seen.append(path)
        with files.atomic(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save, "save_labels", save_labels)
    one_error_line(run_study(scans, "--pictures=False", "--workers=1"), "could not be written", "is there room")
    assert len(seen) == 1


def test_a_drive_that_syncs_no_folders(run_study, scans, monkeypatch):
    """CIFS, VirtualBox and some FUSE mounts refuse it."""
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    code, _, err = run_study(scans / "phantom_001.nii.gz", "--pictures=False")
    assert code == 0, err


def test_a_worker_that_cannot_start_says_why(whole, tmp_path):
    cfg = configure(vars(predict), [f"--checkpoint={tmp_path / 'gone.pth'}"])
    batch._start_worker(cfg, False, torch.get_num_threads())
    try:
        with pytest.raises(UserError, match="could not start: UserError: .*gone.pth"):
            batch._work(None)
    finally:
        batch._process_state.clear()


@pytest.mark.promise("rows")
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_scan_that_kills_its_process_is_a_row(scans, whole, tmp_path):
    """As the system does where memory ends: the others are done."""
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, multiprocessing, os, signal\n"
        "real = builtins.open\n"
        "def open(file, *rest, **more):\n"
        "    if str(file).endswith('phantom_002.nii.gz') and multiprocessing.parent_process():\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(file, *rest, **more)\n"
        "builtins.open = open\n"
    )
    options = [f"--checkpoint={whole['3d'] / 'last.pth'}", "--partner=", "--any_contrast=", "--side=left"]
    command = [sys.executable, str(ROOT / "predict.py"), str(scans), *options, "--workers=2", "--pictures=False"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [*command, f"--out_dir={tmp_path / 'out'}"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2 and "its process was killed" in result.stderr, result.stderr
    assert [bool(row["total_mm3"]) for row in table(tmp_path / "out" / "volumes.csv")] == [True, False, True]


# ---- nothing is left out without a word


@pytest.mark.promise("named")
def test_capitals_pairs_and_mgh_are_read_and_the_rest_is_named(run_study, scans, tmp_path):
    image = nib.load(scans / "phantom_001.nii.gz")
    array = np.asarray(image.dataobj).astype(np.float32)
    (scans / "phantom_002.nii.gz").rename(scans / "B.NII.GZ")
    nib.save(nib.Nifti1Pair(array, image.affine), scans / "c.hdr")
    nib.save(nib.MGHImage(array, image.affine), scans / "d.mgh")
    (scans / "e.nii.bz2").write_bytes(b"BZh9")
    (scans / "notes.txt").write_text("goes with the scans")
    code, text, err = run_study(scans, "--pictures=False")
    assert code == 0 and "5 segmentations" in text, err
    (line,) = [line for line in text.splitlines() if line.startswith("left out: ")]
    assert "e.nii.bz2 (unpack it first: bunzip2" in line and "notes.txt" not in line
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Left out: " in page and "bunzip2" in page
    labels = [nib.load(tmp_path / "out" / f"{name}_seg.nii.gz") for name in ("phantom_001", "c", "d")]
    for other in labels[1:]:
        assert np.array_equal(other.dataobj, labels[0].dataobj) and np.allclose(other.affine, labels[0].affine)
    (scans / "c.img").unlink()
    one_error_line(run_study(scans / "c.hdr", "--pictures=False", "--overwrite=True"), "its other half is missing")


def test_a_changed_half_of_a_pair_is_done_again(run_study, scans):
    image = nib.load(scans / "phantom_001.nii.gz")
    nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine), scans / "c.hdr")
    assert run_study(scans / "c.hdr", "--pictures=False")[0] == 0
    other = np.asarray(nib.load(scans / "phantom_002.nii.gz").dataobj)
    data = np.zeros(image.shape, other.dtype)
    data[tuple(map(slice, np.minimum(image.shape, other.shape)))] = other[
        tuple(map(slice, np.minimum(image.shape, other.shape)))
    ]
    (scans / "c.img").write_bytes(data.astype(image.get_data_dtype()).tobytes("F"))
    assert "are there already" not in run_study(scans / "c.hdr", "--pictures=False")[1]


@pytest.mark.promise("named")
def test_a_person_without_a_t1_is_a_row(run_study, study, tmp_path):
    (study / "sub-03" / "anat").mkdir(parents=True)
    shutil.copy(study / "sub-02/anat/sub-02_T1w.nii.gz", study / "sub-03/anat/sub-03_UNIT1.nii.gz")
    (study / "sub-04" / "func").mkdir(parents=True)
    (study / "sub-01" / "ses-3").mkdir()
    items = {item.name: item.problem for item in find_t1(study)}
    assert "sub-03_UNIT1.nii.gz" in items["sub-03"] and "no T1-weighted scan" in items["sub-04"]
    assert left_out([study], tmp_path) == {str(study / "sub-01/ses-3"): "no T1-weighted scan in this session"}
    code, text, err = run_study(study, "--pictures=False")
    assert code == 2 and "4 segmentations" in text and "sub-03_UNIT1" in err and "ses-3" in text
    rows = {row["participant_id"]: row for row in table(tmp_path / "out" / "volumes.tsv")}
    assert "UNIT1" in rows["sub-03"]["flags"] and rows["sub-04"]["total_mm3"] == "n/a"
    shutil.copy(study / "sub-03/anat/sub-03_UNIT1.nii.gz", study / "sub-03/anat/sub-03_T1w.nii.gz")  # now there is one
    run_study(study, "--pictures=False", "--participant_label=03")
    rows = [row for row in table(tmp_path / "out" / "volumes.tsv") if row["participant_id"] == "sub-03"]
    assert len(rows) == 1 and float(rows[0]["total_mm3"]) > 0


def test_folders_by_the_name_of_labels_are_named(scans):
    (scans / "labelsTr").mkdir()
    shutil.copy(scans / "phantom_001.nii.gz", scans / "labelsTr")
    assert len(find_items([scans], scans / "out")) == 3
    assert list(left_out([scans], scans / "out")) == [str(scans / "labelsTr")]


# ---- one engine for all callers


def test_viz_draws_what_predict_gives_and_nothing_else(script, brain, tmp_path, monkeypatch):
    """What predict.py refuses, viz.py does not draw; what it flags is in the caption."""
    captions, path, tta = [], brain[1] / "whole.nii.gz", "--tta=False"
    monkeypatch.setattr(viz, "draw_scenes", lambda scenes, _: [draw(None) for _, draw in scenes.values()])
    monkeypatch.setattr(viz, "draw_head", lambda *drawn: captions.append(drawn[-1]))
    monkeypatch.setattr(predict, "LEAST_QUALITY", 0.0)
    code, _, err = script(predict, path, tta, f"--out_dir={tmp_path / 'out'}", "--pictures=False")
    assert code == 0, err
    flags = {(row["side"], flag) for row in table(tmp_path / "out" / "volumes.csv") for flag in row["flags"].split(";")}
    assert script(viz, path, tta, f"--out={tmp_path / 'a.png'}")[0] == 0 and len(flags) >= 2
    assert all(flag in captions[0] for _, flag in flags)
    monkeypatch.setattr(predict, "LEAST_QUALITY", 0.99)
    one_error_line(script(viz, path, tta, f"--out={tmp_path / 'a.png'}"), "perhaps no hippocampus", "expected 0.99")


def test_soft_maps_are_described_as_what_they_are(run_study, study, scans, tmp_path):
    code, _, err = run_study(
        scans / "phantom_001.nii.gz", "--labels=freesurfer", "--probabilities=True", "--pictures=False"
    )
    assert code == 0, err
    of_labels, of_maps = (
        nib.load(tmp_path / "out" / f"phantom_001_{kind}.nii.gz").header["descrip"].item().decode()
        for kind in ("seg", "probabilities")
    )
    assert "53 right hippocampus" in of_labels and "1 anterior, 2 posterior" in of_maps


def test_shipped_weights_are_told_by_their_content(scans, tmp_path, whole):
    """Weights of one's own under that name are not compared with the model for any contrast."""
    from hippo.heads.networks import load_networks

    mine = shutil.copy(whole["3d"] / "last.pth", tmp_path / "heads_3d.pth")
    theirs = shutil.copy(ROOT / predict.CHECKPOINT, tmp_path / "renamed.pth")
    for path, shipped in ((mine, False), (theirs, True)):
        networks = load_networks(configure(vars(predict), [], checkpoint=str(path), partner="", device="cpu"))
        assert networks.shipped == shipped


# ---- surroundings


@pytest.mark.parametrize(
    "variables",
    [
        {"MPLBACKEND": "module://matplotlib_inline.nothing_here", "LOCAL_RANK": ""},
        {"MPLBACKEND": "", "RANK": "", "LOCAL_RANK": "1"},
    ],
)
def test_inherited_variables_do_no_harm(variables, tmp_path):
    command = [sys.executable, str(ROOT / "predict.py"), str(tmp_path / "none.nii"), f"--out_dir={tmp_path / 'out'}"]
    result = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "no such file" in result.stderr


def test_a_terminal_that_lacks_letters(tmp_path, monkeypatch):
    """Windows, redirected: cp1252 has no Chinese."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    run_script(lambda: print("患者/海馬.nii.gz"))
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().startswith(b"\\u60a3\\u8005/")


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "\ufeffscan;etiv_mm3\na.nii;1480000,5\n",
            "expected the columns scan, etiv_mm3.*semicolons: save it with commas",
        ),
        ('scan,etiv_mm3\na.nii,"1.480.000"\n', r"line 2 \(a.nii\): '1.480.000'.*neither commas nor dots"),
        ("scan,etiv_mm3\nb.nii,1480000\na.nii,\n", r"line 3 \(a.nii\): the cell etiv_mm3 is empty"),
        ("scan,etiv_mm3\na.nii,1,480,000\n", r"line 2 \(a.nii\): more cells than the first line"),
        ("scan,etiv_mm3\na.nii,1480\n", r"line 2 \(a.nii\): 1480 is no intracranial volume"),
        ("scan,etiv_mm3\na.nii,large\n", r"line 2 \(a.nii\): 'large'"),
    ],
)
def test_a_table_of_etivs_names_the_row_and_its_fault(tmp_path, text, words):
    (tmp_path / "etiv.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        load_etivs(str(tmp_path / "etiv.csv"))

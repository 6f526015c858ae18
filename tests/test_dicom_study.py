"""DICOM in predict.py: real series give the labels of their NIfTI and no word of a person; studies of CDs go on."""

import csv
import json
import shutil
import subprocess
import zipfile

import predict
from hippo.study import convert
from hippo.study.records import RECORDS

import nibabel as nib
import numpy as np
import pytest
from conftest import one_error_line
from dicoms import REAL, SECRETS, packed, real, save, secrets_in, slices_of

pytest.importorskip("pydicom")
pytest.importorskip("dcm2niix")


@pytest.fixture
def cds(phantoms, tmp_path):
    """A folder of two CDs, each with a series of a phantom's crop, and one .zip file of a third."""
    for k, path in enumerate(sorted((phantoms / "imagesTr").iterdir())[:3]):
        image = nib.as_closest_canonical(nib.load(path))
        array = np.asarray(image.dataobj)
        save(
            slices_of(array, [round(float(v), 3) for v in image.header.get_zooms()], uid=f"1.2.{k}"),
            tmp_path / "cds" / f"CD{k}" / "DICOM",
        )
    packed(tmp_path / "cds" / "CD2", tmp_path / "cds" / "CD2.zip")
    shutil.rmtree(tmp_path / "cds" / "CD2")
    return tmp_path / "cds"


def rows(out):
    """The rows of the table in a folder."""
    with open(out / "volumes.csv", newline="") as file:
        return list(csv.DictReader(file))


def half_written(out):
    """What a conversion left behind."""
    return list(out.rglob(".half-*"))


@pytest.mark.promise("dicom")
@real
def test_real_series_give_the_labels_of_their_nifti_and_name_nobody(script, tmp_path, capfd):
    """cd.zip, the unpacked folder and highres.zip; thick_prone.zip is refused for its slices."""
    out, by_hand = tmp_path / "out", tmp_path / "by_hand"
    by_hand.mkdir()
    for name in ("cd", "highres"):
        with zipfile.ZipFile(REAL / f"{name}.zip") as archive:
            archive.extractall(tmp_path / name)
        command = [convert.find_dcm2niix(), "-f", f"{name}_%s", "-b", "n", "-o", str(by_hand), str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tmp_path / "highres")
    before = sorted((tmp_path / "cd").rglob("*"))
    inputs = [REAL / "cd.zip", tmp_path / "cd", REAL / "highres.zip", REAL / "thick_prone.zip"]
    code, text, err = script(
        predict, *inputs, by_hand / "cd_4.nii", by_hand / "highres_401.nii", f"--out_dir={out}", "--tta=False"
    )
    assert (
        err.count("error:") == 1 and "thick_prone.zip: no T1-weighted head in 3D (S2_T1: 2D, slices of 4.8 mm)" in err
    )
    assert code == 2 and "cd.zip: 2 series; taken: S4_T1" in text and "S3_T1 (2D, slices of 4.8 mm)" in text
    found = {path.relative_to(out).as_posix(): nib.load(path) for path in out.rglob("*_hippocampus.nii.gz")}
    names = [name for name in found if "S4_T1" in name]
    assert len(found) == 5 and len(names) == 2
    for name, other in ((names[0], "cd_4"), (names[1], "cd_4"), ("S401_T1_hippocampus.nii.gz", "highres_401")):
        labels, theirs = found[name], found[f"{other}_hippocampus.nii.gz"]
        assert np.array_equal(labels.dataobj, theirs.dataobj) and np.array_equal(labels.affine, theirs.affine), name
        scan = nib.load(out / name.replace("_hippocampus", ""))
        assert np.array_equal(scan.dataobj, nib.load(by_hand / f"{other}.nii").dataobj)
        assert np.array_equal(scan.affine, labels.affine) and not scan.header.extensions
        assert not any(scan.header[field].item() for field in ("descrip", "aux_file", "db_name", "intent_name"))
    assert not secrets_in(out) and not half_written(out)
    assert not any(word in text + err + "".join(capfd.readouterr()) for word in SECRETS)
    assert sorted((tmp_path / "cd").rglob("*")) == before


@pytest.mark.promise("dicom")
@real
def test_a_series_that_is_asked_for_is_done_and_flagged(script, tmp_path):
    code, _, err = script(predict, REAL / "thick_prone.zip", "--series=2", f"--out_dir={tmp_path / 'out'}")
    assert code == 0, err
    assert all("thick_slices" in row["flags"] and row["total_mm3"] for row in rows(tmp_path / "out"))
    assert not secrets_in(tmp_path / "out")


@pytest.mark.promise("dicom")
def test_a_folder_of_cds_is_a_study(run_study, cds, tmp_path):
    out = tmp_path / "out"
    one_error_line(run_study(cds, "--series=9"), "no series 9; there are 4")
    assert not out.exists()
    code, text, err = run_study(cds, "--series=all")
    assert code == 0 and text.count("taken: S4_T1") == 3, err
    assert [row["scan"] for row in rows(out)] == [str(cds / name / "S4_T1") for name in ("CD0", "CD1", "CD2.zip")]
    records = sorted((out / RECORDS / "scans").rglob("*.json"))
    ids = {json.loads(path.read_text())["sha256"].partition(":")[0] for path in records}
    assert len(records) == len(ids) == 3 and not secrets_in(out) and not half_written(out)
    for name in ("CD0", "CD1", "CD2"):
        assert (out / name / "S4_T1.nii.gz").is_file() and (out / name / "S4_T1_seg.nii.gz").is_file()
    assert "3 of 3 scans are there already" in run_study(cds, "--series=all")[1]
    (out / "CD1" / "S4_T1.nii.gz").unlink()
    cds.joinpath("CD0").rename(tmp_path / "CD0")  # to another place: the series is known by its UID
    code, text, err = run_study(tmp_path / "CD0", cds, "--series=all")
    assert code == 0 and "2 of 3 scans are there already" in text, (text, err)
    assert (out / "CD1" / "S4_T1.nii.gz").is_file() and len(rows(out)) == 3


def test_what_fails_is_a_row_and_leaves_nothing(run_study, cds, tmp_path, monkeypatch):
    out = tmp_path / "out"
    path = sorted((cds / "CD0").rglob("IM*"))[10]
    path.unlink()
    monkeypatch.setattr(convert, "_SECONDS", 0)
    code, _, err = run_study(cds, "--series=all", "--workers=1")
    assert code == 2 and err.count("error:") == 3, err
    assert (
        "CD0/S4_T1: 1 of 36 slices missing" in err.replace("\\", "/") and err.count("dcm2niix took more than 0 s") == 2
    )
    assert not list(out.rglob("*.nii.gz")) and not half_written(out)
    one_error_line(run_study(cds / "CD1"), "no T1-weighted head in 3D (S4_T1: covers 37 mm, not a head)")


def test_a_growing_study_keeps_its_names(run_study, cds, tmp_path):
    shutil.move(cds / "CD1", tmp_path / "CD1")
    (cds / "CD2.zip").rename(tmp_path / "CD2.zip")
    assert run_study(cds, "--series=all")[0] == 0
    shutil.move(tmp_path / "CD1", cds / "CD1")
    code, text, _ = run_study(cds, "--series=all")
    assert code == 0 and "1 of 2 scans are there already" in text and len(rows(tmp_path / "out")) == 2


def test_scans_in_a_zip_file(run_study, phantoms, tmp_path):
    scan = sorted((phantoms / "imagesTr").iterdir())[0]
    (tmp_path / "in" / "one").mkdir(parents=True)
    shutil.copy(scan, tmp_path / "in" / "one")
    pair = nib.Nifti1Pair.from_image(nib.load(scan))
    nib.save(pair, tmp_path / "in" / "two.hdr")
    path = packed(tmp_path / "in", tmp_path / "scans.zip")
    code, _, err = run_study(path, scan)
    assert code == 0, err
    out = tmp_path / "out"
    volumes = [row["total_mm3"] for row in rows(out)]
    assert len(volumes) == 3 and len(set(volumes)) == 1
    assert (out / "two_seg.nii.gz").is_file() and (out / "two.nii.gz").is_file()

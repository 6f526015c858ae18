"""Studies: what is found in folders and BIDS data sets, what is written, and how a batch goes on where it stopped."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import predict
from hippo import segmenter
from hippo.errors import UserError
from hippo.files import _half_written, machine
from hippo.study.inputs import Item, find_items
from hippo.study.records import RECORDS, load_study, open_study, shard_of

import numpy as np
import pytest
from conftest import ROOT, one_error_line, wait_until


def content(folder, times=True):
    """{path: bytes} of all files of a folder; without times, the seconds of tables, records and pages are left out."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name in [name for name in found if not times and name.endswith(("sv", "json"))]:
        text = found[name].decode()
        text = re.sub(r'"seconds": "[\d.]+"', "", text)
        if name in ("volumes.csv", "volumes.tsv"):
            rows = [re.split(r"[,\t]", line) for line in text.splitlines()]
            at = rows[0].index("seconds")
            text = "\n".join(",".join(row[:at] + row[at + 1 :]) for row in rows)
        found[name] = text.encode()
    return found


def test_folders_are_searched_and_mirrored(phantoms, tmp_path):
    a, b = sorted((phantoms / "imagesTr").iterdir())[:2]
    names = [
        "one/x.nii.gz",
        "two/deep/x.nii.gz",
        "two/y.nii",
        "x.mgz",
        "x.nii.gz",
        "derivatives/z.nii.gz",
        "labels/z.nii.gz",
        ".hidden/z.nii.gz",
    ]
    root = tmp_path / "scans"
    for name in [*names, "done/z.nii.gz", f"done/{RECORDS}/study.json", "out/z.nii.gz"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(a, root / name)
    if hasattr(os, "symlink"):
        (root / "two" / "circle").symlink_to(root, target_is_directory=True)
    found = {item.name: item.path.relative_to(root).as_posix() for item in find_items([root], root / "out")}
    assert found == {
        "one/x": "one/x.nii.gz",
        "two/deep/x": "two/deep/x.nii.gz",
        "two/y": "two/y.nii",
        "x": "x.mgz",
        "x.nii.gz": "x.nii.gz",
    }
    files = [root / "one/x.nii.gz", root / "two/deep/x.nii.gz", b, root / "one/x.nii.gz"]
    assert [item.name for item in find_items(files, tmp_path / "out")] == ["one/x", "two/deep/x", "phantom_002"]


def test_equal_names_do_not_collide(run_study, phantoms, tmp_path):
    a, b = sorted((phantoms / "imagesTr").iterdir())[:2]
    for place, source in (("s1", a), ("s2", b)):
        (tmp_path / "scans" / place).mkdir(parents=True)
        shutil.copy(source, tmp_path / "scans" / place / "T1.nii.gz")
    code, _, err = run_study(tmp_path / "scans", "--pictures=False")
    assert code == 0, err
    files = [tmp_path / "out" / place / "T1_seg.nii.gz" for place in ("s1", "s2")]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_own_intracranial_volumes_by_path_or_name(tmp_path):
    table = tmp_path / "etiv.csv"
    table.write_text("scan,etiv_mm3\ns1/T1.nii.gz,1.5e6\ns2/T1.nii.gz,1.6e6\n/data/a.nii,1.7e6\nb,1.8e6\n")
    files = {
        "s1/T1": "/x/s1/T1.nii.gz",
        "s2/T1": "/x/s2/T1.nii.gz",
        "s3/T1": "/x/s3/T1.nii.gz",
        "a": "/x/a.nii",
        "b": "/x/b.mgz",
    }
    items = [Item(name, Path(path)) for name, path in files.items()]
    found = [item.etiv_mm3 for item in predict.give_etivs(items, str(table))]
    assert found == [1.5e6, 1.6e6, None, None, 1.8e6]
    table.write_text(
        "scan,etiv_mm3\ns1/T1.nii.gz,1.5e6\n"
    )  # no one else's, though it is the only T1.nii.gz of the table
    assert [item.etiv_mm3 for item in predict.give_etivs(items, str(table))] == [1.5e6, None, None, None, None]
    with pytest.raises(UserError, match="none of its scans is among these"):
        predict.give_etivs(items[1:], str(table))
    table.write_text("scan,etiv_mm3\nT1.mgz,1.5e6\nT1.mgz,1.6e6\n")  # as of a folder for each person
    with pytest.raises(UserError, match="T1.mgz.*several values"):
        predict.give_etivs([Item("T1", Path("/bert/T1.mgz"))], str(table))
    assert {item.etiv_mm3 for item in predict.give_etivs(items, "1480000")} == {1_480_000}


@pytest.mark.promise("batch")
def test_a_study_goes_on_where_it_stopped(run_study, phantoms, nifti, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(phantoms / "imagesTr", scans)
    bad = nifti("scans/bad.nii.gz", np.ones((20, 20, 20)))
    assert run_study(scans)[0] == 2
    first = content(out)
    code, text, _ = run_study(scans)  # only the failure is tried again
    assert code == 2 and "8 of 9 scans are there already" in text
    again = content(out)
    assert {name for name in first if first[name] != again[name]} <= {"volumes.csv", f"{RECORDS}/scans/bad.json"}

    shutil.copy(scans / "phantom_001.nii.gz", bad)  # mended
    shutil.copy(scans / "phantom_002.nii.gz", scans / "phantom_003.nii.gz")  # changed
    (out / "phantom_004_seg.nii.gz").unlink()  # lost
    code, text, err = run_study(scans)
    assert code == 0 and "6 of 9 scans are there already" in text, err
    now = content(out)
    assert now["phantom_003_seg.nii.gz"] == now["phantom_002_seg.nii.gz"] == first["phantom_002_seg.nii.gz"]
    assert now["phantom_004_seg.nii.gz"] == first["phantom_004_seg.nii.gz"]
    assert now["bad_seg.nii.gz"] == now["phantom_001_seg.nii.gz"]
    before = content(out, times=False)
    assert "are there already" not in run_study(scans, "--overwrite=True")[1]
    assert content(out, times=False) == before and not list(tmp_path.glob("*.previous-*"))

    (scans / "phantom_001.nii.gz").write_text("broken now")
    taken_out = (scans / "phantom_002.nii.gz").rename(tmp_path / "phantom_002.nii.gz")
    code, text, _ = run_study(scans)
    assert code == 2 and "out of the table, since the scan is gone: phantom_002" in text
    now = content(out)
    assert "phantom_001_seg.nii.gz" not in now and b"phantom_002" not in now["volumes.csv"]
    assert "phantom_002_seg.nii.gz" in now
    assert len(list((out / RECORDS).rglob("*.webp"))) == 8  # not that of what is broken now
    taken_out.rename(scans / "phantom_002.nii.gz")  # and it is back
    assert "8 of 9 scans are there already" in run_study(scans)[1]
    assert b"phantom_002" in (out / "volumes.csv").read_bytes()
    empty = scans.rename(tmp_path / "unmounted")
    scans.mkdir()  # as where a drive is not mounted
    one_error_line(run_study(scans), "no .nii.gz")
    assert (out / "volumes.csv").read_text().count("phantom_00") == 8 and empty.is_dir()


def test_a_scan_that_ends_the_program_does_not_hold_up_the_others(run_study, phantoms, tmp_path, monkeypatch):
    """What is no mistake of the user is a row, too; what a process ended at comes last."""
    seen = []

    def segment(models, locator, scan, *rest):
        seen.append(Path(scan.image.get_filename()).name)
        raise RuntimeError("out of memory; buy more")

    monkeypatch.setattr(segmenter, "segment", segment)
    a, b, c = sorted((phantoms / "imagesTr").iterdir())[:3]
    begun = tmp_path / "out" / RECORDS / "scans" / "phantom_002.begun"
    begun.parent.mkdir(parents=True)
    begun.touch()
    code, _, err = run_study(a, b, c)
    assert code == 2 and err.count("RuntimeError: out of memory, buy more") == 3
    assert seen == [a.name, c.name, b.name] and not begun.exists()


@pytest.mark.promise("settings")
def test_results_of_other_settings_or_scans_are_kept(run_study, phantoms, nifti, tmp_path):
    a, b = sorted((phantoms / "imagesTr").iterdir())[:2]
    run_study(a, "--pictures=False")
    run_study(b, "--pictures=False")  # another scan beside it
    rows = (tmp_path / "out" / "volumes.csv").read_text().splitlines()
    assert len(rows) == 3 and not list(tmp_path.glob("*.previous-*"))
    (tmp_path / "other").mkdir()
    other = shutil.copy(b, tmp_path / "other" / a.name)
    _, out, _ = run_study(other, "--pictures=False", "--low_quality=0.7")
    assert "out.previous-1" in out
    assert len((tmp_path / "out.previous-1" / "volumes.csv").read_text().splitlines()) == 3
    one_error_line(
        run_study(other, "--shard=1/2"), "results of other settings (pictures, low_quality)", "another --out_dir"
    )
    one_error_line(run_study("typo.nii.gz", "--pictures=False"), "typo.nii.gz: no such file", "stay as they are")
    before = content(tmp_path / "out")
    Path(other).unlink()  # a disk that is no longer mounted takes no results away
    code, out, _ = run_study(other, "--pictures=False", "--low_quality=0.7")
    assert code == 0 and "1 of 1 scans are there already" in out and content(tmp_path / "out") == before
    assert not (tmp_path / "out.previous-2").exists()


@pytest.mark.promise("batch")
def test_what_a_killed_process_left_is_removed(run_study, phantoms, tmp_path):
    scan = phantoms / "imagesTr" / "phantom_001.nii.gz"
    run_study(scan)
    expected = content(tmp_path / "out", times=False)
    (tmp_path / "out" / RECORDS / "scans" / "phantom_001.json").unlink()
    for name in ("phantom_001_seg.nii.gz", "phantom_001_hippocampus.png", "volumes.csv", f"{RECORDS}/study.json"):
        path = tmp_path / "out" / name
        path.with_name(_half_written(path, machine(), 99999999, 456)).write_text("half")
    run_study(scan)
    assert content(tmp_path / "out", times=False) == expected


@pytest.mark.promise("batch")
def test_shards_and_workers_give_what_one_run_gives(run_study, phantoms, tmp_path):
    scans = sorted((phantoms / "imagesTr").iterdir())[:4]
    expected = {}
    for name, options in {
        "one": [("--workers=1",)],
        "two": [("--workers=2",)],
        "shards": [("--shard=1/3",), ("--shard=3/3",), ("--shard=2/3",), ("--collect=True",)],
    }.items():
        out = tmp_path / name
        for option in options:
            inputs = () if "collect" in option[0] else scans
            code, text, err = run_study(*inputs, f"--out_dir={out}", "--pictures=False", *option)
            assert code == 0, err
        expected = expected or content(out, times=False)
        assert content(out, times=False) == expected, name
    assert "4 segmentations and volumes.csv" in text


def test_shards_may_start_at_the_same_moment(run_study, phantoms, tmp_path):
    """When one has made the folder, and not yet written in it."""
    (tmp_path / "out" / RECORDS).mkdir(parents=True)
    code, _, err = run_study(phantoms / "imagesTr", "--shard=1/8", "--pictures=False")
    assert code == 0, err


def test_collect_says_what_is_missing(run_study, phantoms, tmp_path):
    run_study(phantoms / "imagesTr", "--shard=1/2", "--pictures=False")
    assert not (tmp_path / "out" / "volumes.csv").exists()
    result = run_study("--collect=True")
    one_error_line(result, "4 of 8 scans", "phantom_002", "again")
    assert len((tmp_path / "out" / "volumes.csv").read_text().splitlines()) == 5


def test_mistakes_are_one_line(run_study, study, phantoms, tmp_path):
    one_error_line(run_study(study, phantoms), "give it alone")
    one_error_line(run_study(study, "--participant_label=07"), "sub-07", "there are sub-01, sub-02")
    one_error_line(run_study(phantoms, "--session_label=1"), "--session_label is for a BIDS data set")
    for text in ("5/4", "0/3", "3", "a/b", "1/2/3"):
        one_error_line(run_study(phantoms, f"--shard={text}"), f"--shard={text}", "as in 3/100")
    one_error_line(run_study("--collect=True"), "no results in this folder")
    one_error_line(run_study(phantoms, "--workers=-1"), "--workers=-1")
    assert not (tmp_path / "out").exists()
    (tmp_path / "derivatives" / "fmriprep").mkdir(parents=True)
    one_error_line(run_study(study, f"--out_dir={tmp_path / 'derivatives'}"), "holds folders, and no results", "hippo")
    adjustment = tmp_path / "adjustment.json"
    adjustment.write_text('{"mean_etiv_mm3": 1}')
    one_error_line(run_study(study, f"--adjustment={adjustment}", "--pictures=False"), "expected an adjustment.json")


def test_an_adjustment_is_of_its_own_run_only(tmp_path):
    study = {"settings": {}, "bids": "", "adjustment": {"n": 12}}
    for expected in ({"n": 12}, {}):
        open_study(tmp_path, {**study, "adjustment": expected}, [Item("a", tmp_path / "a.nii")], alone=True)
        assert load_study(tmp_path)["adjustment"] == expected


def test_a_folder_that_cannot_be_made_is_one_line(run_study, phantoms, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    one_error_line(run_study(phantoms / "imagesTr", f"--out_dir={blocked / 'out'}"), "blocked")


def test_shards():
    assert shard_of("") == (0, 1) and shard_of("3/100") == (2, 100)
    assert sorted(sum((list(range(10))[slice(shard_of(f"{i}/4")[0], None, 4)] for i in range(1, 5)), [])) == list(
        range(10)
    )


@pytest.mark.promise("batch")
@pytest.mark.slow
def test_a_batch_killed_at_random_moments_goes_on(phantoms, whole, tmp_path):
    """Killed and started again, with two processes: the same files."""
    options = [f"--checkpoint={whole['3d'] / 'last.pth'}", "--partner=", "--any_contrast=", "--side=left"]
    command = [sys.executable, str(ROOT / "predict.py"), str(phantoms / "imagesTr"), *options, "--workers=2"]
    subprocess.run([*command, f"--out_dir={tmp_path / 'one'}"], check=True, capture_output=True)
    rng, killed = np.random.default_rng(0), 0

    def labels():
        return len(list((tmp_path / "two").glob("*_seg.nii.gz")))

    for _ in range(3):
        before = labels()
        process = subprocess.Popen([*command, f"--out_dir={tmp_path / 'two'}"], start_new_session=True)
        wait_until(lambda before=before, process=process: labels() > before or process.poll() is not None, seconds=120)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            os.killpg(process.pid, 9)
            killed += 1
        process.wait()
    assert killed, "the batch was never killed before it was done"
    subprocess.run([*command, f"--out_dir={tmp_path / 'two'}"], check=True, capture_output=True)
    assert content(tmp_path / "one", times=False) == content(tmp_path / "two", times=False)

"""Several runs in one folder of results: nothing is lost, whatever starts when, and whatever is killed."""

import csv
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import predict
from hippo.options import configure
from hippo.study import outputs, sharing
from hippo.study.inputs import Item
from hippo.study.records import RECORDS, load_study, open_study

import pytest
from conftest import ROOT, one_error_line

posix = pytest.mark.skipif(os.name != "posix", reason="fork and SIGKILL")
NOTHING = {"settings": {}, "bids": "", "adjustment": {}}

# forks runs of predict.py that begin at one moment, kills some of them, and starts those again
TOGETHER = """
import multiprocessing, os, random, signal, sys, time
import torch
import predict
from hippo.options import configure

torch.set_num_threads(1)
study, out, jobs, kills, seed, options = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6:]
context, wait = multiprocessing.get_context("fork"), random.Random(seed)

def job(number, barrier):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    barrier.wait()
    label = f"--participant_label={number:02d}"
    cfg = configure(vars(predict), [study, f"--out_dir={out}", label, "--pictures=False", "--workers=1", *options], "scans")
    os._exit(0 if predict.run(cfg) else 2)

left = list(range(1, jobs + 1))
while left:
    barrier = context.Barrier(len(left))
    running = {number: context.Process(target=job, args=(number, barrier)) for number in left}
    for process in running.values():
        process.start()
    for number in wait.sample(left, min(kills, len(left))):
        time.sleep(wait.uniform(0, 0.5))
        os.kill(running[number].pid, signal.SIGKILL)
    for process in running.values():
        process.join()
    left, kills = [number for number, process in running.items() if process.exitcode == -signal.SIGKILL], kills - 2
    assert all(process.exitcode in (0, -signal.SIGKILL) for process in running.values())
"""


def people(phantoms, root, count):
    """A BIDS data set of so many people."""
    sources = sorted((phantoms / "imagesTr").iterdir())
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "Many", "BIDSVersion": "1.8.0"}')
    for number in range(1, count + 1):
        folder = root / f"sub-{number:02d}" / "anat"
        folder.mkdir(parents=True)
        shutil.copy(sources[number % len(sources)], folder / f"sub-{number:02d}_T1w.nii.gz")
    return root


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.promise("shared_folder")
@posix
@pytest.mark.parametrize("runs, rounds", [(6, 1), pytest.param(16, 20, marks=pytest.mark.slow)])
def test_runs_that_begin_together_lose_nothing(phantoms, whole, tmp_path, runs, rounds):
    """As an array of a cluster starts participants of a BIDS App, some of which are killed and started again."""
    study = people(phantoms, tmp_path / "study", runs)
    model = f"--checkpoint={whole['3d'] / 'last.pth'}"
    for number in range(rounds):
        out = tmp_path / f"out {number}"
        command = [sys.executable, "-c", TOGETHER, str(study), str(out), str(runs), "4", str(number)]
        options = [model, "--partner=", "--any_contrast=", "--side=left", "--tta=False"]
        result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        expected = [f"sub-{n:02d}" for n in range(1, runs + 1)]
        assert [row["participant_id"] for row in table(out / "volumes.tsv")] == expected
        assert len(list(out.rglob("*_dseg.nii.gz"))) == runs and not list(tmp_path.glob("*.previous-*"))
        assert not [path for path in out.rglob(".half-*")]
        assert predict.run(configure(vars(predict), ["--collect=True", f"--out_dir={out}"]))
        assert [row["participant_id"] for row in table(out / "volumes.tsv")] == expected


def test_shards_and_runs_join_in_any_order(run_study, phantoms, tmp_path):
    """A shard, a run of one scan, and another shard: the table holds all that is on the disk."""
    scans = phantoms / "imagesTr"
    run_study(scans, "--shard=2/3", "--pictures=False")
    run_study(scans / "phantom_001.nii.gz", "--pictures=False")
    assert len(table(tmp_path / "out" / "volumes.csv")) == 4  # 2, 5, 8 and 1
    result = run_study("--collect=True")
    one_error_line(result, "4 of 8 scans are not done", "phantom_003")
    assert run_study(scans, "--pictures=False")[0] == 0
    assert len(table(tmp_path / "out" / "volumes.csv")) == 8


def _stay(out, settings, ready, end):
    open_study(out, {**NOTHING, "settings": settings}, [Item("a", Path(__file__))])
    (Path(out) / RECORDS / "scans").mkdir()
    (Path(out) / RECORDS / "scans" / "a.json").write_text(json.dumps({"name": "a", "rows": [], "path": __file__}))
    ready.set()
    end.wait(60)


@pytest.mark.promise("settings")
def test_a_folder_in_use_is_never_renamed(tmp_path, capsys):
    """A second run with other settings is refused while the first one is at work; then the results are set aside."""
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    out, other = tmp_path / "out", {**NOTHING, "settings": {"low_quality": 0.7}}
    process = context.Process(target=_stay, args=(str(out), {"low_quality": 0.8}, ready, end))
    process.start()
    assert ready.wait(60)
    with pytest.raises(predict.UserError, match="other settings .low_quality.*another run is at work.*--out_dir"):
        open_study(out, other, [Item("b", Path(__file__))])
    assert sharing.is_in_use(out) and not list(tmp_path.glob("*.previous-*"))
    process.kill() if os.name == "posix" else end.set()  # a run that is killed holds nothing back
    process.join()
    assert not sharing.is_in_use(out)
    open_study(out, other, [Item("b", Path(__file__))])
    sharing.leave(out)
    assert (tmp_path / "out.previous-1").is_dir() and list(load_study(out)["scans"]) == ["b"]


@pytest.mark.promise("settings")
def test_another_processor_sets_nothing_aside(tmp_path):
    """Half of a cluster computes in bfloat16: the other half is refused, and renames nothing."""
    item = Item("a", Path(__file__))
    open_study(tmp_path / "out", {**NOTHING, "settings": {"precision": "bfloat16"}}, [item])
    (tmp_path / "out" / RECORDS / "scans").mkdir()
    record = {"name": "a", "rows": [{"total_mm3": "1"}], "path": __file__}
    (tmp_path / "out" / RECORDS / "scans" / "a.json").write_text(json.dumps(record))
    with pytest.raises(predict.UserError, match="in bfloat16, and this processor computes in float32.*--amp=False"):
        open_study(tmp_path / "out", {**NOTHING, "settings": {"precision": "float32"}}, [item])
    sharing.leave(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.promise("shared_folder")
def test_a_run_without_a_record_of_its_own_says_so(run_study, phantoms, monkeypatch):
    monkeypatch.setattr(outputs, "save_record", lambda *_: None)
    one_error_line(run_study(phantoms / "imagesTr" / "phantom_001.nii.gz"), "no record of phantom_001", "again")


@posix
@pytest.mark.promise("shared_folder")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_drive_without_locks_loses_no_record(run_study, phantoms, tmp_path, monkeypatch, number):
    """Some NFS servers answer ENOLCK, Lustre without -o flock ENOSYS."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    sharing._say_once.cache_clear()
    for n in (1, 2):
        code, _, err = run_study(phantoms / "imagesTr" / f"phantom_00{n}.nii.gz", "--pictures=False")
        assert code == 0, err
        assert number != errno.ENOLCK or n > 1 or ("no locks on this drive" in err and "--collect=True" in err)
    assert len(table(tmp_path / "out" / "volumes.csv")) == 2


@pytest.mark.promise("shared_folder")
def test_one_name_in_many_folders_is_one_table(run_study, phantoms, tmp_path):
    """for s in subj*; do python predict.py $s/T1.nii.gz; done, with equal scans too."""
    a, b = sorted((phantoms / "imagesTr").iterdir())[:2]
    scans = [tmp_path / "subjects" / name / "T1.nii.gz" for name in ("subj1", "subj2", "subj3")]
    for scan, source in zip(scans, (a, a, b)):
        scan.parent.mkdir(parents=True)
        shutil.copy(source, scan)
    for scan in [*scans, scans[1]]:
        code, text, err = run_study(scan, "--pictures=False")
        assert code == 0, err
    assert "1 of 1 scans are there already" in text and not list(tmp_path.glob("*.previous-*"))
    rows = table(tmp_path / "out" / "volumes.csv")
    assert sorted(row["scan"] for row in rows) == sorted(map(str, scans))
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*_seg.nii.gz"))
    assert found == ["T1_seg.nii.gz", "subj2/T1_seg.nii.gz", "subj3/T1_seg.nii.gz"]
    code, text, _ = run_study(tmp_path / "subjects", "--pictures=False")  # found in a folder, they keep their names
    assert "3 of 3 scans are there already" in text and len(table(tmp_path / "out" / "volumes.csv")) == 3
    moved = tmp_path / "elsewhere"
    (tmp_path / "subjects").rename(moved)  # the same scans in another place
    code, text, _ = run_study(moved / "subj1" / "T1.nii.gz", "--pictures=False")
    assert "1 of 1 scans are there already" in text and len(table(tmp_path / "out" / "volumes.csv")) == 3


def test_a_half_written_file_of_another_machine_stays(run_study, phantoms, tmp_path, monkeypatch):
    scan = phantoms / "imagesTr" / "phantom_001.nii.gz"
    run_study(scan, "--pictures=False")
    from hippo import files

    table_path = tmp_path / "out" / "volumes.csv"
    theirs = table_path.with_name(files._half_written(table_path, "0" * 8, 99999999, 1))
    mine = table_path.with_name(files._half_written(table_path, files.machine(), 99999999, 1))
    for path in (theirs, mine):
        path.write_text("half")
    run_study("--collect=True")
    assert theirs.exists() and not mine.exists()


@pytest.mark.promise("rows")
@posix
def test_ctrl_c_while_workers_start_is_one_line(phantoms, whole, tmp_path):
    model = f"--checkpoint={whole['3d'] / 'last.pth'}"
    options = [model, "--partner=", "--any_contrast=", "--side=left", "--workers=2", f"--out_dir={tmp_path / 'out'}"]
    many = tmp_path / "many"  # scans enough for some seconds
    many.mkdir()
    for path in (phantoms / "imagesTr").glob("*.nii.gz"):
        for number in range(60):
            shutil.copy(path, many / f"{number}_{path.name}")
    command = [sys.executable, str(ROOT / "predict.py"), str(many), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_receive_interrupts,
    )
    wait, end = random.Random(0), time.monotonic() + 60
    while len(_children(process.pid)) < 2:  # the tracker of resources and a worker
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    time.sleep(wait.uniform(0, 1))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err, err
    assert len([line for line in err.splitlines() if line.strip() and "predict:" not in line]) <= 3, err


def _receive_interrupts():
    """A shell starts what runs in its background with interrupts ignored, which child processes inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _children(pid):
    result = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return result.stdout.split()


@pytest.mark.promise("shared_folder")
def test_what_is_not_there_takes_no_result_away(run_study, phantoms, tmp_path):
    """A scan that git-annex dropped, or whose drive is gone: not even --overwrite or another eTIV deletes what was found."""
    scan = tmp_path / "scan.nii.gz"
    shutil.copy(phantoms / "imagesTr" / "phantom_001.nii.gz", scan)
    run_study(scan, "--pictures=False")
    for missing in (scan.unlink, lambda: scan.write_text("/annex/objects/MD5E-s600--01.nii.gz")):
        missing()
        for option in ("--overwrite=True", "--etiv=1480000"):
            code, _, err = run_study(scan, "--pictures=False", option)
            assert code == 0 and "its earlier result stays" in err
    assert (tmp_path / "out" / "scan_seg.nii.gz").is_file()
    assert float(table(tmp_path / "out" / "volumes.csv")[0]["total_mm3"]) > 0


@pytest.mark.promise("shared_folder")
def test_half_written_records_and_moved_scans(run_study, phantoms, tmp_path):
    """A record that was being written when a run was killed counts as none; a scan that was moved has its new path."""
    first = tmp_path / "s1" / "T1.nii.gz"
    first.parent.mkdir()
    shutil.copy(phantoms / "imagesTr" / "phantom_001.nii.gz", first)
    run_study(first, "--pictures=False")
    record = tmp_path / "out" / RECORDS / "scans" / "T1.json"
    record.with_name(".half-0-1-2-00000000.json").write_text(record.read_text().replace(str(first), "/half"))
    (tmp_path / "s1").rename(tmp_path / "s1_old")
    moved = tmp_path / "s1_old" / "T1.nii.gz"
    assert "1 of 1 scans are there already" in run_study(moved, "--pictures=False")[1]
    first.parent.mkdir()
    shutil.copy(phantoms / "imagesTr" / "phantom_002.nii.gz", first)
    run_study(first, "--pictures=False")
    assert {row["scan"] for row in table(tmp_path / "out" / "volumes.csv")} == {str(moved), str(first)}


@pytest.mark.promise("rows")
def test_two_missing_scans_are_two_rows(run_study, tmp_path):
    """Files that cannot be read have no checksum in common."""
    for name in ("one.nii.gz", "two.nii.gz"):
        assert run_study(tmp_path / name, "--pictures=False")[0] == 2
    assert [Path(row["scan"]).name for row in table(tmp_path / "out" / "volumes.csv")] == ["one.nii.gz", "two.nii.gz"]

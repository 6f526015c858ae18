"""Runs that survive: kills, Ctrl-C, full disks."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import data_aug
import grid_search_3d
from hippo.options import configure
from hippo.processes import Interrupt
from hippo.training import engine, search

import pytest
from conftest import ROOT, one_error_line
from runs import SMALL_3D, assert_same_run, leftovers

resource = pytest.importorskip("resource")  # signals and limits of Linux and macOS


# ---- killed


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it, and no temporary file is taken away."""


@pytest.mark.promise("resume")
@pytest.mark.parametrize("name", ["3d", "2d"])
def test_killed_while_writing_any_file(jobs, whole, tmp_path, monkeypatch, name):
    """The run is killed at its first write (a part of the file being there), resumed, killed at its second, ..."""
    module, options = jobs[name]
    real, out_dir, count, kill_at = os.replace, tmp_path / "run é 1", 0, 0

    def replace(source, target):
        nonlocal count
        count += 1
        if count == kill_at:
            half = out_dir / ".half-0-99999-0-0.pth"
            half.write_bytes(b"half")
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    for kill_at in range(1, 12):  # noqa: B007 (replace reads it)
        count = 0
        try:
            module.run(configure(vars(module), [*options, f"--out_dir={out_dir}", "--resume=True"]))
            break
        except Killed:
            continue
    assert kill_at > 4
    kill_at = 0
    module.run(configure(vars(module), [*options, f"--out_dir={out_dir}", "--resume=True"]))
    assert_same_run(whole[name], out_dir)
    assert not leftovers(out_dir) and not list(tmp_path.glob("*.previous-*"))


def start(module, *options):
    """Starts a script in a process of its own."""
    more = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    return subprocess.Popen([sys.executable, module.__file__, *map(str, options)], cwd=ROOT, **more)


def kill_until_done(module, options, folder, kills, longest):
    """Starts a script again and again and kills it at random moments; returns how often it was killed."""
    done, wait = 0, random.Random(0)
    while True:
        process = start(module, *options, f"--out_dir={folder}", *(["--resume=True"] * hasattr(module, "RESUME")))
        try:
            code = process.wait(wait.uniform(0.5, longest) if done < kills else 600)
            assert code == 0
            return done
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1


@pytest.mark.promise("resume")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["3d", "2d"])
def test_killed_at_random_moments(jobs, tmp_path, name):
    module, options = jobs[name]
    options = [*options, "--epochs=60"]
    assert start(module, *options, f"--out_dir={tmp_path / 'whole'}").wait(600) == 0
    seconds = sum(json.loads((tmp_path / "whole" / "history.json").read_text())["seconds"])
    kills = kill_until_done(module, options, tmp_path / "killed", 25, 4 + seconds / 20)
    assert kills >= 15, f"only {kills} kills before the run was done"
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not list(tmp_path.glob("*.previous-*"))


@pytest.mark.promise("resume")
@pytest.mark.slow
def test_a_killed_search_goes_on(jobs, tmp_path, phantoms):
    options = [o.replace("--depth", "--unet_depth") for o in (*SMALL_3D, f"--data_root={phantoms}", "--seeds=[0,1]")]
    options = [*options, "--inr_hidden_dim=[8]", "--epochs=8"]
    assert start(grid_search_3d, *options, f"--out_dir={tmp_path / 'whole'}").wait(600) == 0
    kills = kill_until_done(grid_search_3d, options, tmp_path / "killed", 20, 7)
    assert kills >= 10, f"only {kills} kills before the search was done"
    found = [json.loads((tmp_path / name / search.RESULTS).read_text()) for name in ("whole", "killed")]
    for entries in found:
        for entry in entries.values():
            entry.pop("training_time")
    assert found[0] == found[1] and not list(tmp_path.glob("*.previous-*"))


def test_resume_without_a_checkpoint_starts_from_the_beginning(script, jobs, tmp_path):
    module, options = jobs["3d"]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    code, out, err = script(module, *options, "--epochs=1", f"--out_dir={folder}", "--resume=True")
    assert code == 0 and "no checkpoint yet" in out and (folder / "metrics.json").exists(), err
    assert (folder / "notes.txt").read_text() == "mine" and not list(tmp_path.glob("*.previous-*"))


# ---- Ctrl-C


@pytest.mark.promise("ctrl_c")
@pytest.mark.parametrize("name", ["3d", "2d"])
def test_ctrl_c_saves_and_says_how_to_go_on(script, jobs, whole, tmp_path, monkeypatch, name):
    module, options = jobs[name]
    real, calls = engine.dice_of_logits, []

    def press(logits, label):
        calls.append(1)
        if len(calls) in (2, 6):  # in the middle of two epochs
            signal.raise_signal(signal.SIGINT)
        return real(logits, label)

    monkeypatch.setattr(engine, "dice_of_logits", press)
    codes = []
    for _ in range(3):
        code, _, err = script(module, *options, f"--out_dir={tmp_path / 'run'}", "--resume=True")
        codes.append(code)
        assert code == 0 or "all steps are saved in" in err and "--resume=True" in err
    assert codes == [130, 130, 0]
    assert_same_run(whole[name], tmp_path / "run")


def test_a_second_ctrl_c_interrupts_at_once(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- disks


@pytest.fixture
def small_disk():
    """Files cannot grow beyond a size, as on a full disk: small_disk(bytes)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.promise("files")
@pytest.mark.parametrize("name", ["3d", "2d"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(script, jobs, tmp_path, small_disk, name):
    module, options = jobs[name]
    small_disk(20_000)  # enough for config.json
    result = script(module, *options, f"--out_dir={tmp_path / 'run'}")
    small_disk(resource.RLIM_INFINITY)
    one_error_line(result, "best_model.pth")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.promise("files")
def test_a_full_disk_loses_no_earlier_result(script, jobs, whole, tmp_path, small_disk):
    module, options = jobs["3d"]
    copy = shutil.copytree(whole["3d"], tmp_path / "run")
    small_disk(20_000)
    one_error_line(script(module, *options, f"--out_dir={copy}"), "best_model.pth")
    small_disk(resource.RLIM_INFINITY)
    assert_same_run(whole["3d"], tmp_path / "run.previous-1")


def test_a_full_disk_while_slices_are_written(script, phantoms, tmp_path, small_disk):
    options = (f"--data_root={phantoms}", f"--out_dir={tmp_path / 'slices'}", "--size=64", "--slices_per_plane=2")
    small_disk(10_000)
    one_error_line(script(data_aug, *options, "--num_workers=1"), "could not be written")
    small_disk(resource.RLIM_INFINITY)
    assert not list((tmp_path / "slices").rglob("*.npy")) and not (tmp_path / "slices" / "index.csv").exists()
    assert script(data_aug, *options, "--num_workers=1")[0] == 0


@pytest.mark.parametrize(
    "place", ["file/run", pytest.param("/proc/none/run", marks=pytest.mark.skipif(os.name == "nt", reason="no /proc"))]
)
def test_a_place_that_cannot_be_written(script, jobs, tmp_path, place):
    module, options = jobs["3d"]
    (tmp_path / "file").write_text("a file, not a folder")
    one_error_line(script(module, *options, f"--out_dir={tmp_path / place}"), place.split("/")[-2])
    assert (tmp_path / "file").read_text() == "a file, not a folder"


@pytest.mark.promise("read_only")
def test_data_may_be_read_only_and_behind_links(script, jobs, phantoms, tmp_path):
    data = shutil.copytree(phantoms, tmp_path / "Daten für später")
    for path in [*data.rglob("*"), data]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "link").symlink_to(data, target_is_directory=True)
    module, options = jobs["3d"]
    options = (*options, "--epochs=1")
    code, _, err = script(
        module, *options, f"--data_root={tmp_path / 'link'}", f"--out_dir={tmp_path / 'Läufe' / 'a b'}"
    )
    for path in [data, *data.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert code == 0 and (tmp_path / "Läufe" / "a b" / "metrics.json").exists(), err

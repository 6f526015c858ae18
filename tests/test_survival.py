"""Runs that survive: kills, Ctrl-C, full disks, gradients that are not finite, several processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, one_error_line

import data_aug
import grid_search_3d
import train2d
import train_3d
from hippo.models.checkpoint import load_checkpoint
from hippo.options import configure
from hippo.processes import Interrupt
from hippo.scoring import metrics
from hippo.training import engine, search
from hippo.training.losses import dice_focal_loss

resource = pytest.importorskip("resource")  # signals and limits of Linux and macOS

SMALL_3D = ("--base_channels=4", "--depth=2", "--patch=[24,32,24]", "--min_steps=1", "--epochs=3", "--tta=False")
SMALL_2D = ("--model=UNetnnUNetWithINR", "--base_channels=4", "--unet_depth=2", "--min_steps=1", "--epochs=3")


@pytest.fixture(scope="module")
def jobs(phantoms, tmp_path_factory):
    """{name: (training script, its options)} of a small 3D and a small 2D run."""
    slices = tmp_path_factory.mktemp("slices") / "dataset_2d"
    options = ["--size=32", "--slices_per_plane=2", f"--data_root={phantoms}", f"--out_dir={slices}"]
    data_aug.run(configure(vars(data_aug), [*options, "--num_workers=1"]))
    return {
        "3d": (train_3d, (*SMALL_3D, f"--data_root={phantoms}")),
        "2d": (train2d, (*SMALL_2D, f"--data_root={phantoms}", f"--data_dir={slices}")),
    }


@pytest.fixture(scope="module")
def whole(jobs, tmp_path_factory):
    """{name: folder of a run that was never interrupted}; not to be changed by a test."""
    folders = {}
    for name, (module, options) in jobs.items():
        folders[name] = tmp_path_factory.mktemp("whole") / name
        module.run(configure(vars(module), [*options, f"--out_dir={folders[name]}"]))
    return folders


def numbers(folder):
    """history.json without the times."""
    history = json.loads((folder / "history.json").read_text())
    return {name: values for name, values in history.items() if name != "seconds"}


def assert_same_run(a, b):
    """The same history, and the same weights bit for bit."""
    assert numbers(a) == numbers(b)
    for name in ("last.pth", "best_model.pth"):
        one, other = (load_checkpoint(folder / name)["model_state_dict"] for folder in (a, b))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    results = [json.loads((folder / "metrics.json").read_text()) for folder in (a, b)]
    for result in results:
        result.pop("training_minutes")
    assert results[0] == results[1]


def leftovers(folder):
    """Half-written files below a folder."""
    return [p for p in folder.rglob(".*") if p.is_file()]


# ---- killed


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it, and no temporary file is taken away."""


@pytest.mark.parametrize("name", ["3d", "2d"])
def test_killed_while_writing_any_file(jobs, whole, tmp_path, monkeypatch, name):
    """The run is killed at its first write (a part of the file being there), resumed, killed at its second, ..."""
    module, options = jobs[name]
    real, out_dir, count, kill_at = os.replace, tmp_path / "run é 1", 0, 0

    def replace(source, target):
        nonlocal count
        count += 1
        if count == kill_at:
            half = out_dir / ".99999.last.pth"
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


@pytest.mark.parametrize("name", ["3d", "2d"])
def test_ctrl_c_saves_and_says_how_to_go_on(script, jobs, whole, tmp_path, monkeypatch, name):
    module, options = jobs[name]
    real, calls = metrics.hard_dice, []

    def press(logits, label):
        calls.append(1)
        if len(calls) in (2, 6):  # in the middle of two epochs
            signal.raise_signal(signal.SIGINT)
        return real(logits, label)

    monkeypatch.setattr(engine, "hard_dice", press)
    codes = []
    for _ in range(3):
        code, _, err = script(module, *options, f"--out_dir={tmp_path / 'run'}", "--resume=True")
        codes.append(code)
        assert code == 0 or "all steps are saved in" in err and "--resume=True" in err
    assert codes == [130, 130, 0]
    assert_same_run(whole[name], tmp_path / "run")


def test_a_second_ctrl_c_interrupts_at_once():
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


@pytest.mark.parametrize("name", ["3d", "2d"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(script, jobs, tmp_path, small_disk, name):
    module, options = jobs[name]
    small_disk(20_000)  # enough for config.json
    result = script(module, *options, f"--out_dir={tmp_path / 'run'}")
    small_disk(resource.RLIM_INFINITY)
    one_error_line(result, "best_model.pth")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]


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


# ---- training health


@pytest.fixture
def losses(monkeypatch):
    """Makes the loss not finite at the steps that losses(condition) says: condition(number of the step, from 0)."""

    def break_at(condition):
        calls, real = [], dice_focal_loss

        def broken(logits, label, **options):
            loss = real(logits, label, **options)
            if logits.requires_grad:
                calls.append(1)
                loss = loss * (float("nan") if condition(len(calls) - 1) else 1.0)
            return loss

        monkeypatch.setattr(train_3d, "dice_focal_loss", broken)

    return break_at


def test_a_step_that_is_not_finite_is_skipped_and_counted(script, jobs, tmp_path, losses):
    module, options = jobs["3d"]
    losses(lambda step: step in (1, 4, 5))
    code, out, err = script(module, *options, f"--out_dir={tmp_path / 'run'}")
    assert code == 0 and "1 steps skipped" in out and "2 steps skipped" in out, err
    history = numbers(tmp_path / "run")
    assert history["skipped_steps"] == [1, 2, 0] and np.isfinite(history["train_loss"]).all()
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    for weights in (state["model_state_dict"], state["training"]["weights"]):
        assert all(torch.isfinite(v).all() for v in weights.values())


def test_a_run_that_keeps_failing_stops(script, jobs, whole, tmp_path, monkeypatch, losses):
    module, options = jobs["3d"]
    monkeypatch.setattr(engine, "MAX_BAD_STEPS", 4)
    losses(lambda step: step >= 5)  # the third step of the second epoch
    result = script(module, *options, f"--out_dir={tmp_path / 'run'}")
    one_error_line(
        result, "epoch 3: stopped", "4 steps", "nan", "last.pth holds the weights after epoch 2", "--learning_rate"
    )
    monkeypatch.undo()
    history = numbers(tmp_path / "run")
    assert history["skipped_steps"] == [0, 1]
    losses(lambda step: True)
    monkeypatch.setattr(engine, "MAX_BAD_STEPS", 2)
    result = script(module, *options, f"--out_dir={tmp_path / 'other'}")
    one_error_line(result, "epoch 1: stopped", "no good checkpoint yet")


class FakeScaler:
    """A GradScaler whose every third gradient overflows; it notes what it is asked to do."""

    log = []

    def __init__(self, device, enabled):
        assert device == "cpu" and enabled
        self.scale_, self.overflow = 8.0, False

    def is_enabled(self):
        return True

    def scale(self, loss):
        self.log.append("scale")
        self.overflow = self.log.count("scale") % 3 == 0
        return loss * (float("inf") if self.overflow else self.scale_)

    def unscale_(self, optimiser):
        self.log.append("unscale")
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self.scale_

    def step(self, optimiser):
        self.log.append("step")
        if not self.overflow:
            optimiser.step()

    def update(self):
        self.log.append("update")
        self.scale_ *= 0.5 if self.overflow else 1.0

    def state_dict(self):
        return {"scale": self.scale_}

    def load_state_dict(self, state):
        self.log.append("load")
        self.scale_ = state["scale"]


def test_the_path_of_the_gradient_scaler(script, jobs, tmp_path, monkeypatch):
    """As on CUDA: fp16 with a scaler, in the right order, its state saved and resumed."""
    module, options = jobs["3d"]
    monkeypatch.setattr(torch.amp, "GradScaler", FakeScaler)
    monkeypatch.setattr(module, "pick_device", lambda *_: (torch.device("cpu"), torch.float16))
    monkeypatch.setattr(FakeScaler, "log", [])
    options = (*options, "--epochs=1", "--patch=[8,8,8]", "--base_channels=2", "--depth=1")  # fp16 is slow on a CPU
    code, _, err = script(module, *options, f"--out_dir={tmp_path / 'run'}")
    assert code == 0, err
    steps = FakeScaler.log.count("scale")
    good = ["scale", "unscale", "unscale", "step", "step", "update"]  # Muon and AdamW
    bad = [name for name in good if name != "step"]
    assert FakeScaler.log == [name for i in range(1, steps + 1) for name in (bad if i % 3 == 0 else good)]
    assert sum(numbers(tmp_path / "run")["skipped_steps"]) == steps // 3 > 0
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    assert state["training"]["scaler"] == {"scale": 8 * 0.5 ** (steps // 3)}
    assert all(torch.isfinite(v).all() for v in state["model_state_dict"].values())
    script(module, *options, f"--out_dir={tmp_path / 'run'}", "--resume=True")
    assert FakeScaler.log[-1] == "load"


# ---- several processes


def torchrun(module, *options, processes=2, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, module.__file__, *map(str, options)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


def finish(process, seconds=240):
    """Waits for a process and returns what it printed; kills it when it hangs."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3d", "2d"])
def test_two_processes_give_what_one_gives(jobs, whole, tmp_path, name):
    module, options = jobs[name]
    # bf16 rounds differently in other batches; 6 cases in 3D: batches of 4 and 2, of which each process takes half
    options = (*options, "--amp=False", "--batch_size=4" if name == "3d" else "--batch_size=5")
    single = tmp_path / "one"
    module.run(configure(vars(module), [*options, f"--out_dir={single}"]))
    process = torchrun(module, *options, f"--out_dir={tmp_path / 'two'}")
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("epoch   1/3") == 1  # one process prints
    a, b = numbers(single), numbers(tmp_path / "two")
    for key in ("train_loss", "val_loss", "train_dice", "val_dice"):
        assert np.allclose(a[key], b[key], atol=1e-3), key
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (single, tmp_path / "two"))
    assert list(one["cases"]) == list(two["cases"])
    assert json.loads((tmp_path / "two" / "config.json").read_text())["processes"] == 2


def test_a_batch_is_shared_without_repeats():
    from hippo.data.loading import EpochSampler

    whole = list(EpochSampler(7, 4, 3, min_steps=3))
    parts = [EpochSampler(7, 4, 3, min_steps=3, rank=r, world=3) for r in range(3)]
    for step, (batch, *shares) in enumerate(zip(whole, *parts)):
        weights = [part.share(step) for part in parts]
        seen = [key for keys, weight in zip(shares, weights) if weight for key in keys]
        assert sorted(seen) == sorted(batch) and sum(weights) == pytest.approx(3)
        assert weights == [pytest.approx(3 * len(keys) / len(batch)) if w else 0 for keys, w in zip(shares, weights)]
    sampler = EpochSampler(7, 4, 3, min_steps=3)
    sampler.start = 2
    assert list(sampler) == whole[2:] and len(sampler) == len(whole)


@pytest.mark.slow
def test_weights_are_equal_on_all_ranks(jobs, tmp_path):
    module, options = jobs["3d"]
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch, train_3d\n"
        "from hippo.options import configure\n"
        "from hippo.processes import rank\n"
        "from hippo.training import engine\n"
        "real = engine.fit\n"
        "def fit(model, *rest):\n"
        "    history = real(model, *rest)\n"
        "    torch.save(model.state_dict(), f'{sys.argv[1]}/{rank()}.pt')\n"
        "    return history\n"
        "train_3d.fit = fit\n"
        "train_3d.run(configure(vars(train_3d), sys.argv[2:]))\n"
    )
    process = torchrun(
        type("Script", (), {"__file__": str(program)}), tmp_path, *options, f"--out_dir={tmp_path / 'run'}"
    )
    output = finish(process)
    assert process.returncode == 0, output
    one, other = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_leaves_a_resumable_run(jobs, tmp_path):
    module, options = jobs["3d"]
    options = (*options, "--epochs=400", f"--out_dir={tmp_path / 'run'}")
    process = torchrun(module, *options)
    history = tmp_path / "run" / "history.json"
    until = time.time() + 120
    while not history.exists() and time.time() < until:
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    finish(process)
    assert process.returncode != 0
    done = len(json.loads(history.read_text())["seconds"])
    assert done < 400
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    assert state["epoch"] >= done and all(torch.isfinite(v).all() for v in state["model_state_dict"].values())


def test_a_search_refuses_torchrun(script, phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    one_error_line(script(grid_search_3d, f"--data_root={phantoms}", f"--out_dir={tmp_path / 's'}"), "--only=KEY")

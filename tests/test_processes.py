"""Several processes, as torchrun starts them."""

import json
import os
import signal
import subprocess
import sys
import time

import grid_search_3d
from hippo.data.loading import EpochSampler
from hippo.models.checkpoint import load_checkpoint
from hippo.options import configure

import numpy as np
import pytest
import torch
from conftest import ROOT, one_error_line
from runs import numbers


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


@pytest.mark.promise("torchrun")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["3d", "2d"])
def test_two_processes_give_what_one_gives(jobs, whole, tmp_path, name):
    module, options = jobs[name]
    # bf16 rounds differently in other batches; 4 cases in 3D: batches of 3 and 1, of which the processes take 2 and 1, and 1 and none
    options = (*options, "--amp=False", "--batch_size=3" if name == "3d" else "--batch_size=5")
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


@pytest.mark.promise("torchrun")
def test_a_batch_is_shared_without_repeats():

    whole = list(EpochSampler(7, 4, 3, min_steps=3))
    parts = [EpochSampler(7, 4, 3, min_steps=3, rank=r, world=3) for r in range(3)]
    for step, (batch, *shares) in enumerate(zip(whole, *parts)):
        weights = [part.weight(step) for part in parts]
        seen = [key for keys, weight in zip(shares, weights) if weight for key in keys]
        assert sorted(seen) == sorted(batch) and sum(weights) == pytest.approx(3)
        assert weights == [pytest.approx(3 * len(keys) / len(batch)) if w else 0 for keys, w in zip(shares, weights)]
    sampler = EpochSampler(7, 4, 3, min_steps=3)
    sampler.start = 2
    assert list(sampler) == whole[2:] and len(sampler) == len(whole)


@pytest.mark.promise("torchrun")
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


@pytest.mark.promise("torchrun")
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

"""Measures time and memory on this machine: of predictions, training steps, every model, the making of slices, the metrics,
and the same steps of nnU-Net's and MONAI's networks.

    python -m tools.benchmark       about twelve minutes on two CPU cores; writes benchmark.json
    python -m tools.benchmark --only=heads --heads=FOLDER      whole heads against hippodeep, see tools/heads.py; heads.json
    python -m tools.benchmark --only=repeatability (or contrasts)     see tools/stability.py
    python -m tools.benchmark --only=ordinary_cpu --heads=FOLDER      how long a head takes, a training, and each network, on a
                                    processor without bf16; half an hour on two cores; ordinary_cpu.json
    python -m tools.benchmark --only=ordinary_cpu_models              the networks anew, in the same file

Each measurement of the first command (tools/speed.py) runs in a process of its own, on the CPU, on the validation volumes of
Task04_Hippocampus, with the precision that the scripts choose; the peers in float32, the default memory layout and batches
of 9 volumes, as their own plans have it. Needs Linux or macOS, the data, the finished runs in CHECKPOINTS, and nnU-Net's
network: pip install --no-deps dynamic-network-architectures

FOLDER is a BIDS data set of heads. The training of ordinary_cpu is train_3d.py with its defaults, into ORDINARY_RUN; a finished
one is taken as it is.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

from hippo.device import precision, set_up_device
from hippo.errors import require
from hippo.files import ROOT, load_json, save_json
from hippo.models.checkpoint import load_checkpoint
from hippo.options import configure, run_script
from tools import heads, stability
from tools.common import find_heads
from tools.speed import JOBS, PEERS, describe_all

import numpy as np
import torch

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
_RUNS = ("results_hippocampus-3D", "checkpoints-2d", "checkpoints-2d-64")
CHECKPOINTS = [f"{run}/last.pth" for run in _RUNS]  # trained models to measure
OUT = "benchmark.json"  # file to write
HEADS = "heads"  # BIDS folder of whole heads with derivatives/hippodeep/, for --only=heads
ANATOMIES = "anatomies"  # folder of label maps (python get_data.py --anatomies=anatomies), for --only=heads
HIPPODEEP = ""  # folder of bthyreau/hippodeep_pytorch, to time it too, for --only=heads; empty: not
OUT_HEADS = "heads.json"  # file that --only=heads writes
OUT_REPEATABILITY = "repeatability.json"  # file that --only=repeatability writes
OUT_CONTRASTS = "any_contrast.json"  # file that --only=contrasts writes
OUT_ORDINARY_CPU = "ordinary_cpu.json"  # file that --only=ordinary_cpu writes
ORDINARY_RUN = "ablations/ordinary_cpu_3d"  # folder of the training of --only=ordinary_cpu
ONLY = ""  # measure one thing in this process and print JSON: predict, train, models, slices, metrics, products, or a peer's name

_ROUNDS = 3


def main():
    cfg = configure(globals())
    if cfg.only == "heads":
        heads.run(cfg.heads, cfg.anatomies, cfg.out_heads, cfg.hippodeep)
        return
    if cfg.only == "repeatability":
        stability.measure_rescans(cfg.heads, cfg.anatomies, cfg.out_repeatability, cfg.hippodeep)
        return
    if cfg.only == "contrasts":
        stability.measure_contrasts(cfg.data_root, cfg.heads, cfg.anatomies, cfg.out_contrasts)
        return
    if cfg.only in ("ordinary_cpu", "ordinary_cpu_models"):
        ordinary_cpu(cfg)
        return
    if cfg.only:
        require(cfg.only in JOBS, f"--only={cfg.only}: expected one of {', '.join(JOBS)}")
        print(json.dumps(JOBS[cfg.only](cfg.checkpoints[0], cfg.data_root)))
        return
    require(sys.platform != "win32", "this measures peak memory by what Windows lacks; run it elsewhere")
    for checkpoint in cfg.checkpoints:
        load_checkpoint(checkpoint)
    results = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    alone = ("slices", "models", "metrics", "products")
    results |= {only: in_its_own_process(only, cfg, cfg.checkpoints[0]) for only in alone}
    # interleaved, so that a slowdown of the machine affects all alike
    rounds = [{name: in_its_own_process(name, cfg, cfg.checkpoints[0]) for name in PEERS} for _ in range(_ROUNDS)]
    results["peers"] = {name: median_run([done[name] for done in rounds]) for name in PEERS}
    results["runs"] = {
        c: {only: in_its_own_process(only, cfg, c) for only in ("predict", "train")} for c in cfg.checkpoints
    }
    save_json(cfg.out, results)


def median_run(runs):
    """The run of the median training time."""
    return sorted(runs, key=lambda run: run["seconds_per_training_volume"])[len(runs) // 2]


def in_its_own_process(only, cfg, checkpoint):
    """What `python -m tools.benchmark --only=...` prints in a new process."""
    command = [
        sys.executable,
        "-m",
        "tools.benchmark",
        f"--only={only}",
        f"--checkpoints={[checkpoint]!r}",
        f"--data_root={cfg.data_root}",
    ]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    require(answer.returncode == 0, f"measuring {only} of {checkpoint} failed: {answer.stderr.strip()}")
    result = json.loads(answer.stdout.splitlines()[-1])
    print(checkpoint, only, result, flush=True)
    return result


def ordinary_cpu(cfg):
    """Measures what a processor without bf16 does, and writes the file."""
    _, dtype = set_up_device("cpu")
    require(dtype is None, "this processor has bf16; the other measurements are of such a one")
    if cfg.only == "ordinary_cpu":
        save_json(cfg.out_ordinary_cpu, scans_and_training(cfg.ordinary_run, find_heads(cfg.heads), dtype))
    result = load_json(cfg.out_ordinary_cpu, "python -m tools.benchmark --only=ordinary_cpu")
    save_json(cfg.out_ordinary_cpu, {**result, "models": describe_all()})


def scans_and_training(run, paths, dtype):
    """Seconds a head, and minutes and Dice of a training."""
    if not (Path(run) / "metrics.json").is_file():
        subprocess.run([sys.executable, "train_3d.py", f"--out_dir={Path(run).resolve()}"], cwd=ROOT, check=True)
    metrics = load_json(Path(run) / "metrics.json", "the same command")
    result = {"threads": torch.get_num_threads(), "precision": precision(dtype), "machine": platform.machine()}
    result["instructions"] = torch.backends.cpu.get_cpu_capability()
    result |= {"training_minutes": metrics["training_minutes"], "dice": np.mean(metrics["mean"]["dice"])}
    return {**result, "speed": heads.speed(paths, "")}


if __name__ == "__main__":
    run_script(main)

"""Measures what a reader of the README asks first, on a processor without bf16: how long a head takes, and a training.

    python -m tools.ordinary_cpu --heads=FOLDER      half an hour on two cores; writes ordinary_cpu.json

FOLDER is a BIDS data set of heads. The training is train_3d.py with its defaults, into RUN; a finished one is taken as it is.
"""

import platform
import subprocess
import sys
from pathlib import Path

from hippo.device import precision, set_up_device
from hippo.errors import require
from hippo.files import ROOT, load_json, save_json
from hippo.options import configure, run_script
from tools.heads import find_heads, speed

import numpy as np
import torch

HEADS = "heads"  # BIDS folder of whole heads
RUN = "ablations/ordinary_cpu_3d"  # folder of the training
OUT = "ordinary_cpu.json"  # file to write


def main():
    run(configure(globals()))


def run(cfg):
    """Measures both and writes the file."""
    paths = find_heads(cfg.heads)
    _, dtype = set_up_device("cpu")
    require(dtype is None, "this processor has bf16; the other measurements are of such a one")
    if not (Path(cfg.run) / "metrics.json").is_file():
        subprocess.run([sys.executable, "train_3d.py", f"--out_dir={Path(cfg.run).resolve()}"], cwd=ROOT, check=True)
    metrics = load_json(Path(cfg.run) / "metrics.json", "the same command")
    result = {"threads": torch.get_num_threads(), "precision": precision(dtype), "machine": platform.machine()}
    result["instructions"] = torch.backends.cpu.get_cpu_capability()
    result |= {"training_minutes": metrics["training_minutes"], "dice": np.mean(metrics["mean"]["dice"])}
    save_json(cfg.out, {**result, "speed": speed(paths, "")})


if __name__ == "__main__":
    run_script(main)

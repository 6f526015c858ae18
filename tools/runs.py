"""Runs of scripts that a measurement needs: several at a time, each on its share of the cores."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from hippo.files import ROOT


def run_all(commands, workers=2):
    """Runs commands (lists of words), `workers` at a time; raises CalledProcessError for one that fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}

    def run(command):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        print(f"done: {' '.join(command[1:])}", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, commands))


def train_all(jobs, workers=2):
    """Trains what is missing of {folder: {option of train_3d.py: value}}; a run that was broken off goes on."""
    commands = []
    for folder, options in jobs.items():
        if not (folder / "metrics.json").is_file():
            options = {"out_dir": folder, "resume": (folder / "last.pth").is_file(), **options}
            options = [f"--{name}={value}" for name, value in options.items()]
            commands.append([sys.executable, str(ROOT / "train_3d.py"), *options])
    run_all(commands, workers)

"""Runs of train_3d.py that a measurement needs: several at a time, each goes on where it stopped."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from hippo.files import ROOT


def train_all(jobs, workers=2):
    """Trains what is missing of {folder: {option of train_3d.py: value}}, `workers` runs at a time, each on its share of
    the cores."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}

    def train(folder, options):
        if (folder / "metrics.json").is_file():
            return
        options = {"out_dir": folder, "resume": (folder / "last.pth").is_file(), **options}
        command = [sys.executable, str(ROOT / "train_3d.py"), *(f"--{name}={value}" for name, value in options.items())]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        print(f"{folder} is done", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda job: train(*job), jobs.items()))

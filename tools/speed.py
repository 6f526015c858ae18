"""Measures how long a head takes on this processor, beside hippodeep's own code in the same run.

    python -m tools.speed --heads=FOLDER --hippodeep=FOLDER     seven minutes on two cores; adds an entry to speed.json
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 python -m tools.speed ...
                                                                as on a processor of AVX2, for ours and for hippodeep's

Runs of both programs alternate, ROUNDS times: one head alone, and COUNT heads in one run, without pictures, each program
with its own defaults; what a further head takes is the difference, divided. A first run of each, which reads the files
from the disk, does not count. The rest is ours alone: imports, loading, a head with its picture, all heads with pictures
and page, and the peak memory. Times are medians of wall-clock seconds. The rates of a matrix product say in what the
processor is best.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hippo.device import pick_device, precision
from hippo.files import ROOT, load_json, save_json
from hippo.options import configure, run_script
from tools.benchmark import products
from tools.heads import find_heads

import numpy as np
import torch

HEADS = "heads"  # BIDS folder of whole heads
HIPPODEEP = ""  # folder of bthyreau/hippodeep_pytorch; empty: ours alone
COUNT = 6  # heads in one run
ROUNDS = 5  # runs of each kind
OUT = "speed.json"  # file to add to: {kind of processor: what was measured}

_MEMORY = (
    "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
    "try: runpy.run_path('predict.py', run_name='__main__')\n"
    "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)"
)
_START = (
    "import time; start = time.perf_counter(); import predict; from hippo.segmenter import Segmenter\n"
    "middle = time.perf_counter(); Segmenter.load(device='cpu')\n"
    "print(middle - start, time.perf_counter() - middle)"
)


def main():
    run(configure(globals()))


def run(cfg):
    """Measures, and adds the entry of this kind of processor to the file. Returns the entry."""
    paths = [str(path.resolve()) for path in find_heads(cfg.heads)]
    dtype = pick_device("cpu")[1]
    entry = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "precision": precision(dtype)}
    entry |= {"instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    entry |= {"heads_in_a_batch": cfg.count, "rounds": cfg.rounds}
    if entry["instructions"] != "AVX2":  # which emulates bf16, slowly
        entry["gflops_of_a_product"] = products()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        copies = [shutil.copy(path, folder) for path in paths[: cfg.count]]  # hippodeep writes beside them
        programs = {"ours": lambda files: ours(files, folder)}
        if cfg.hippodeep:
            programs["hippodeep"] = lambda files: hippodeep(files, cfg.hippodeep)
        for program in programs.values():
            program(copies[:1])
        seconds = {name: {"cold": [], "batch": []} for name in programs}
        for _ in range(cfg.rounds):
            for name, program in programs.items():
                seconds[name]["cold"].append(program(copies[:1]))
                seconds[name]["batch"].append(program(copies))
                print(name, {kind: round(values[-1], 2) for kind, values in seconds[name].items()}, flush=True)
        entry |= {name: summary(values, cfg.count) for name, values in seconds.items()}
        entry["ours"] |= start_up(cfg.rounds)
        entry["ours"]["cold_with_picture_seconds"] = ours(copies[:1], folder, "--pictures=True")
        entry["ours"]["peak_memory_mib"] = peak_memory_mib(copies, folder)
        entry["study"] = {"heads": len(paths), "seconds": ours(paths, folder, "--pictures=True")}
    if cfg.hippodeep:
        entry["ratios"] = {
            kind: entry["ours"][f"{kind}_seconds"] / entry["hippodeep"][f"{kind}_seconds"]
            for kind in ("cold", "batch", "further_head")
        }
    known = load_json(cfg.out, "the same command") if Path(cfg.out).is_file() else {}
    save_json(cfg.out, {**known, f"{entry['instructions']}, {entry['precision']}": entry})
    print(entry)
    return entry


def summary(seconds, count):
    """Returns the medians of runs of one head and of `count`, and what a further head takes."""
    cold, batch = (float(np.median(seconds[kind])) for kind in ("cold", "batch"))
    return {"cold_seconds": cold, "batch_seconds": batch, "further_head_seconds": (batch - cold) / (count - 1)}


def ours(files, folder, *options):
    """Returns the seconds of predict.py, from files to files."""
    options = options or ("--pictures=False",)
    out_dir = tempfile.mkdtemp(dir=folder)
    return clock([sys.executable, "predict.py", *files, f"--out_dir={out_dir}", "--device=cpu", *options])


def hippodeep(files, code):
    """Returns the seconds of hippodeep's own code."""
    return clock([sys.executable, str(Path(code).resolve() / "hippodeep.py"), *files])


def clock(command):
    """Returns the seconds that a command takes. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def start_up(rounds):
    """Returns the median seconds of the imports of predict.py, and of the loading of the networks."""
    command = [sys.executable, "-c", _START]
    answers = [subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True) for _ in range(rounds)]
    times = np.median([[float(part) for part in answer.stdout.split()[-2:]] for answer in answers], axis=0)
    return dict(zip(("import_seconds", "load_seconds"), times.tolist()))


def peak_memory_mib(files, folder):
    """Returns the peak memory of a run of predict.py with one worker."""
    command = [sys.executable, "-c", _MEMORY, *files, "--workers=1", f"--out_dir={tempfile.mkdtemp(dir=folder)}"]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(answer.stdout.split()[-1])


if __name__ == "__main__":
    run_script(main)

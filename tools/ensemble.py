"""Scores finished runs together: the probabilities of their final weights are averaged.

    python -m tools.ensemble                              the 3D run and the short 2D run, half a minute on two CPU cores
    python -m tools.ensemble --runs="['one','another']"   any runs of train_3d.py and train2d.py on one split

Writes into OUT_DIR: metrics.json (as a run's, and "members": the mean of each run) and plots/*.png. The runs must have
been trained on one split, and are scored on the cases that it held out. The commands of the
short 2D run are in docs/RESULTS.md.
"""

from hippo.device import set_up_device
from hippo.errors import require
from hippo.options import configure, run_script
from hippo.processes import refuse_several_processes
from hippo.scoring.ensemble import score_ensemble

RUNS = ["results_hippocampus-3D", "checkpoints-2d-64"]  # folders of finished runs
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder that they were trained on
OUT_DIR = "results_ensemble"  # folder for results; one that holds results is kept as <name>.previous-N
TTA = True  # test-time augmentation of the 3D models
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 on a GPU or CPU that has it, fp16 on older GPUs


def main():
    run(configure(globals()))


def run(cfg):
    """Scores the runs of a configuration together; returns the content of metrics.json."""
    refuse_several_processes("use python -m tools.ensemble")
    require(cfg.runs, "--runs=[]: expected the folders of finished runs")
    device, dtype = set_up_device(cfg.device, cfg.amp)
    return score_ensemble(cfg.runs, cfg.data_root, cfg.out_dir, cfg.tta, device, dtype)


if __name__ == "__main__":
    run_script(main)

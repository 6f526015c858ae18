"""Scores finished runs together: the probabilities of their final weights are averaged.

    python ensemble.py                              the 3D run and the short 2D run, half a minute on two CPU cores
    python ensemble.py --runs="['one','another']"   any runs of train_3d.py and train2d.py on one split

Writes into OUT_DIR: metrics.json (as a run's, and "members": the mean of each run) and plots/*.png. The runs must have
been trained on one split, and are scored on the cases that it held out. The short 2D run is made by:

    python data_aug.py --out_dir=dataset_2d_64 --size=64 --slices_per_plane=30 --share_none=1 --share_rotation=0 \\
        --share_affine=0 --share_flip=0
    python train2d.py --data_dir=dataset_2d_64 --out_dir=checkpoints-2d-64 --epochs=3 --muon_rate=0.04 --cooldown=0 \\
        --ema=0.998 --shift_voxels=4 --dice_smooth=8
"""

from pathlib import Path

from common import (
    configure,
    fresh_folder,
    load_json,
    pick_device,
    refuse_several_processes,
    require,
    run_script,
    save_json,
)
from dataset import load_volumes
from evaluation import draw_results, evaluate
from metrics import summarise
from predict import load_model

RUNS = ["results_hippocampus-3D", "checkpoints-2d-64"]  # folders of finished runs
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder that they were trained on
OUT_DIR = "results_ensemble"  # folder for results; one that holds results is kept as <name>.previous-N
TTA = True  # test-time augmentation of the 3D models
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1
AMP = True  # mixed precision: fp16 on CUDA, bf16 on a CPU that has it

_MADE_BY = "train_3d.py or train2d.py; the commands are at the top of ensemble.py"


def main():
    run(configure(globals()))


def run(cfg):
    """Scores the runs of a configuration together; returns the content of metrics.json."""
    refuse_several_processes("start it")
    require(cfg.runs, "--runs=[]: expected the folders of finished runs")
    device, dtype = pick_device(cfg.device, cfg.amp)
    models, splits, parts = [], [], []
    for folder in map(Path, cfg.runs):
        part = load_json(folder / "metrics.json", _MADE_BY)
        model, info = load_model(folder / "last.pth")
        fits = isinstance(part, dict) and {"mean", "training_minutes", "synthetic"} <= part.keys()
        require(
            fits and {"train_cases", "val_cases"} <= info.keys(),
            f"{folder} holds no finished run; make it with: {_MADE_BY}",
        )
        models.append(model.to(device))
        parts.append(part)
        splits.append((info["train_cases"], info["val_cases"]))
    for folder, split in zip(cfg.runs, splits):
        require(split == splits[0], f"{folder} was trained on other cases than {cfg.runs[0]}; name runs on one split")
    val = load_volumes(cfg.data_root, splits[0][1])
    cases, _ = evaluate(models, val, device, dtype, cfg.tta)
    metrics = {
        "synthetic": any(part["synthetic"] for part in parts),
        "cases": cases,
        **summarise(cases),
        "tta": cfg.tta,
        "training_minutes": round(sum(part["training_minutes"] for part in parts), 2),
        "members": {str(folder): part["mean"] for folder, part in zip(cfg.runs, parts)},
    }
    out_dir = fresh_folder(cfg.out_dir)
    save_json(out_dir / "metrics.json", metrics)
    draw_results(models, val, cases, out_dir / "plots", device, dtype, metrics["synthetic"], cfg.tta)
    anterior, posterior = metrics["mean"]["dice"]
    alone = ", ".join(f"{folder} {sum(part['mean']['dice']) / 2:.4f}" for folder, part in zip(cfg.runs, parts))
    print(f"together: Dice {(anterior + posterior) / 2:.4f} ({anterior:.4f} / {posterior:.4f}); alone: {alone}")
    return metrics


if __name__ == "__main__":
    run_script(main)

"""Scores finished runs together: the probabilities of their final weights are averaged.

    python ensemble.py                         the 3D and the 2D run, half a minute on two CPU cores
    python ensemble.py --runs=[a,b,c]          any runs of train_3d.py and train2d.py on one split

Writes into OUT_DIR: metrics.json (as a run's, and "members": the mean of each run) and plots/*.png. The runs must have
been trained on the same cases, and are scored on the ones that all of them held out.
"""

from pathlib import Path

from common import configure, fresh_folder, load_json, pick_device, require, run_script, save_json
from dataset import list_cases, load_case
from evaluation import draw_results, evaluate
from metrics import summarise
from predict import load_model

RUNS = ["results_hippocampus-3D", "checkpoints-2d"]  # folders of finished runs
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder that they were trained on
OUT_DIR = "results_ensemble"  # folder for results; one that holds results is kept as <name>.previous-N
TTA = True  # test-time augmentation of the 3D models
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1
AMP = True  # mixed precision: fp16 on CUDA, bf16 on a CPU that has it


def main():
    run(configure(globals()))


def run(cfg):
    """Scores the runs of a configuration together; returns the content of metrics.json."""
    device, dtype = pick_device(cfg.device, cfg.amp)
    models, splits, parts = [], [], []
    for folder in map(Path, cfg.runs):
        parts.append(load_json(folder / "metrics.json", "train_3d.py or train2d.py, to its end"))
        model, info = load_model(folder / "last.pth")
        models.append(model.to(device))
        splits.append((info["train_cases"], info["val_cases"]))
    require(models, "--runs=[]: expected the folders of finished runs")
    for folder, split in zip(cfg.runs, splits):
        require(split == splits[0], f"{folder} was trained on other cases than {cfg.runs[0]}; name runs on one split")
    known = {case.id: case for case in list_cases(cfg.data_root)[0]}
    for name in splits[0][1]:
        require(name in known, f"{cfg.data_root}: no case {name}; name the runs' own --data_root")
    val = [load_case(known[name]) for name in splits[0][1]]
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

"""Five-fold cross-validation of the 3D model, and of the 3D and the 2D model together, on nnU-Net's own folds, compared
case by case with nnU-Net's predictions.

    python cross_validate.py          runs the folds, one after another, each for as long as train_3d.py and a short
                                      train2d.py take; started again, it goes on where it stopped
    python cross_validate.py --folds=[0]     one fold only, for a cluster; the same without it then gathers all five

The recipe is the same for all folds, and no choice is made on the fold that is scored: the final weights count. Writes into
RUNS/fold_N: 3d-SEED, 2d-SEED (runs of the training scripts) and together_... (of ensemble.py); and into OUT_DIR: cross_validation.json
(per case, per label, per fold; means with bootstrap 95 % intervals; "members": the single models) and
plots/cross_validation_*.png.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np

import data_aug
import ensemble
import plots
import train2d
import train_3d
from common import configure, keep_earlier, load_json, require, run_script, save_json
from engine import same_constants
from metrics import LABELS, summarise

# data
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder: dataset.json, imagesTr, labelsTr
FOLDS = [0, 1, 2, 3, 4]  # nnU-Net's folds to run
RUNS = "cross_validation_runs"  # folder of the runs, one folder for each fold
OUT_DIR = "results_hippocampus-3D"  # folder for the results of all folds together
PEER = "references/nnunet_v1_3d_fullres_oof_dice.csv"  # nnU-Net's out-of-fold Dice of each case; empty: no comparison
# training: everything else is the training scripts'
EPOCHS = train_3d.EPOCHS  # epochs of the 3D model
BASE_CHANNELS = train_3d.BASE_CHANNELS  # channels of its first stage
EPOCHS_2D = 3  # epochs of the 2D model; 0: none, the 3D model alone
SLICE_SIZE = 64  # pixels along each side of its slices
SLICES_PER_PLANE = 30  # slices of each plane of a volume, at most
# system
SEEDS = [0]  # of the training; each seed is one more 3D and one more 2D model
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1
AMP = True  # mixed precision: fp16 on CUDA, bf16 on a CPU that has it
NUM_WORKERS = 0  # processes that augment; 0: the main one

_RESAMPLES = 10_000
# a 2D recipe of minutes: small slices that are stored as they are and augmented anew in each epoch, and Muon
_SLICES = {"share_none": 1.0, "share_rotation": 0.0, "share_affine": 0.0, "share_flip": 0.0}
_RECIPE_2D = {"muon_rate": 0.04, "cooldown": 0.0, "ema": 0.998, "shift_voxels": 4.0, "dice_smooth": 8.0}


def main():
    run(configure(globals()))


def run(cfg):
    """Runs the folds of a configuration that are not done yet; returns the content of cross_validation.json, once all
    five are there, else None."""
    require(cfg.seeds, "--seeds=[]: expected at least one")
    require(cfg.folds and set(cfg.folds) <= set(range(5)), f"--folds={cfg.folds}: expected numbers from 0 to 4")
    peer = read_peer(cfg.peer) if cfg.peer else {}
    for fold in cfg.folds:
        print(f"fold {fold}", flush=True)
        run_fold(cfg, fold)
    members = [f"{kind}-{seed}" for seed in cfg.seeds for kind in (["3d", "2d"] if cfg.epochs_2d else ["3d"])]
    scored = together(members)
    folders = [Path(cfg.runs) / f"fold_{fold}" for fold in range(5)]
    missing = [folder for folder in folders if not (folder / scored / "metrics.json").is_file()]
    if missing:
        print(f"still to run: {', '.join(map(str, missing))}; then: python cross_validate.py")
        return None
    result = collect([folder / scored for folder in folders], peer)
    alone = {name: collect([folder / name for folder in folders], peer) for name in members}
    kept = ("mean", "std", "folds", "training_minutes", "interval", "difference")
    result["members"] = {name: {k: part[k] for k in kept if k in part} for name, part in alone.items()}
    path = Path(cfg.out_dir) / "cross_validation.json"
    if path.is_file() and load_json(path, "python cross_validate.py") != json.loads(json.dumps(result)):
        keep_earlier(path)
    save_json(path, result)
    draw(result, peer, Path(cfg.out_dir) / "plots")
    for name, interval in (("mean", result["interval"]), ("difference from nnU-Net", result.get("difference"))):
        if interval:
            low, high = interval["interval"]
            print(f"{name}: Dice {interval['mean']:.4f} (95 % interval {low:.4f} to {high:.4f})")
    return result


def together(members):
    """The name of the folder that holds the result of some members of a fold."""
    return members[0] if len(members) == 1 else "_".join(["together", *members])


def run_fold(cfg, fold):
    """Trains and scores the models of a fold, as far as they are not there yet."""
    folder, members = Path(cfg.runs) / f"fold_{fold}", []
    options = {name: getattr(cfg, name) for name in ("data_root", "device", "amp", "num_workers")}
    slices = folder / "slices"
    for seed in cfg.seeds:
        members.append(f"3d-{seed}")
        more = {"fold": fold, "epochs": cfg.epochs, "base_channels": cfg.base_channels, "seed": seed}
        run_once(train_3d, **options, **more, out_dir=f"{folder}/3d-{seed}")
        if cfg.epochs_2d:
            members.append(f"2d-{seed}")
            if not (folder / members[-1] / "metrics.json").is_file() and not (slices / "index.csv").is_file():
                data = {"data_root": cfg.data_root, "fold": fold, "size": cfg.slice_size, "out_dir": str(slices)}
                data_aug.run(configure(vars(data_aug), [], **data, slices_per_plane=cfg.slices_per_plane, **_SLICES))
            more = {"data_dir": str(slices), "epochs": cfg.epochs_2d, "seed": seed}
            run_once(train2d, **options, **_RECIPE_2D, **more, out_dir=f"{folder}/2d-{seed}")
    shutil.rmtree(slices, ignore_errors=True)  # a quarter of a GB, and made again in seconds
    if len(members) > 1 and not (folder / together(members) / "metrics.json").is_file():
        options = {name: getattr(cfg, name) for name in ("data_root", "device", "amp")}
        runs = [f"{folder}/{name}" for name in members]
        ensemble.run(configure(vars(ensemble), [], **options, runs=runs, out_dir=f"{folder}/{together(members)}"))


def run_once(train, **options):
    """Runs a training script, or goes on with its run, unless it is finished."""
    cfg = configure(vars(train), [], **options, resume=True)
    if (Path(cfg.out_dir) / "metrics.json").is_file():
        same_constants(cfg.out_dir, cfg)
        print(f"{cfg.out_dir} is done already")
    else:
        train.run(cfg)


def read_peer(path):
    """{case: mean Dice} of a CSV with the columns case_id and argmax_foreground_mean_dice."""
    require(Path(path).is_file(), f"{path}: missing; get it with: git checkout {path}; or --peer= for no comparison")
    with open(path, newline="", encoding="utf-8") as file:
        return {row["case_id"]: float(row["argmax_foreground_mean_dice"]) for row in csv.DictReader(file)}


def collect(folders, peer):
    """The content of cross_validation.json from the folds' metrics.json."""
    parts = [load_json(folder / "metrics.json", "python cross_validate.py") for folder in folders]
    cases = {
        case: {"fold": fold, **values} for fold, part in enumerate(parts) for case, values in part["cases"].items()
    }
    cases = dict(sorted(cases.items()))
    scores = {case: float(np.mean(values["dice"])) for case, values in cases.items()}
    result = {
        "synthetic": parts[0]["synthetic"],
        "cases": cases,
        **summarise({case: {k: v for k, v in values.items() if k != "fold"} for case, values in cases.items()}),
        "tta": parts[0]["tta"],
        "training_minutes": [part["training_minutes"] for part in parts],
        "folds": [{"mean": part["mean"], "cases": len(part["cases"])} for part in parts],
        "interval": bootstrap(list(scores.values())),
    }
    shared = [case for case in scores if case in peer]
    if shared:
        result["difference"] = bootstrap([scores[case] - peer[case] for case in shared])
        result["difference"]["cases"] = len(shared)
    return result


def bootstrap(values, seed=0):
    """Mean of one value a case and its 95 % interval, from resampling the cases (Efron & Tibshirani 1993)."""
    values = np.array(values)
    chosen = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(values[chosen].mean(1), [2.5, 97.5])
    return {"mean": float(values.mean()), "interval": [float(low), float(high)]}


def draw(result, peer, folder):
    """cross_validation_peer.png, cross_validation_worst.png and cross_validation_volumes.png."""
    source = plots.source(result["synthetic"])
    cases = result["cases"]
    if "difference" in result:
        shared = {case: (peer[case], float(np.mean(v["dice"]))) for case, v in cases.items() if case in peer}
        low, high = result["difference"]["interval"]
        title = (
            f"{len(shared)} cases, difference {result['difference']['mean']:+.4f} ({low:+.4f} to {high:+.4f}): {source}"
        )
        plots.against_peer(shared, folder / "cross_validation_peer.png", title)
    worst = dict(sorted(cases.items(), key=lambda item: np.mean(item[1]["dice"]))[:30])
    plots.per_case_dice(worst, folder / "cross_validation_worst.png", f"The {len(worst)} worst cases: {source}")
    volumes = {
        name: [(v["true_volume_mm3"][i], v["volume_mm3"][i]) for v in cases.values()]
        for i, name in enumerate(LABELS.values())
    }
    plots.bland_altman(volumes, folder / "cross_validation_volumes.png", f"Volume agreement: {source}")


if __name__ == "__main__":
    run_script(main)

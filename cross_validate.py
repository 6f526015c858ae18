"""Cross-validates the 3D model, and the 3D and the 2D model together, on nnU-Net's own five folds, and compares them
case by case with nnU-Net's predictions.

    python cross_validate.py          runs the folds, one after another, about 14 minutes each on two CPU cores with
                                      bf16; started again, it goes on where it stopped
    python cross_validate.py --recipe=ensemble   the same with two seeds of both models, together
    python cross_validate.py --folds="[0]"   one fold only, for a cluster; the same without it then gathers all five

The recipe is the same for all folds, and the final weights count: no epoch is chosen on a scored fold. Writes into
RUNS/fold_N: 3d-SEED and 2d-SEED (runs of the training scripts), and together_... (their scores together). Writes into
OUT_DIR: cross_validation.json (per case, per label, per fold; means with bootstrap 95 % intervals; "members": each
model alone; "gain": of all together over the first; "border_gain": of BORDER) and plots/cross_validation_*.png.
"""

import json
import shutil
from pathlib import Path

import data_aug
import train2d
import train_3d
from hippo.data.cases import LABELS, count_labels, list_cases
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import finite, load_json, save_json, set_aside
from hippo.options import configure, constants, run_script
from hippo.pictures import plots
from hippo.processes import refuse_several_processes
from hippo.scoring.ensemble import score_ensemble
from hippo.scoring.folds import collect_members, read_peer, result_name
from hippo.training.run_folder import same_constants

import numpy as np

# data
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder: dataset.json, imagesTr, labelsTr
MAX_CASES = 0  # 0: all cases; n: the first n sorted cases, in five folds of their own
RECIPE = "crops"  # crops; heads: for other scanners and people, see train_3d.py; ensemble: four models; see RECIPES
FOLDS = [0, 1, 2, 3, 4]  # nnU-Net's folds to run
RUNS = "cross_validation_runs"  # folder of the runs, one folder for each fold
OUT_DIR = "results_cross_validation"  # folder for the results of all folds together
PEER = "references/nnunet_v1_3d_fullres_oof_dice.csv"  # nnU-Net's out-of-fold Dice of each case; empty: no comparison
# training: everything else is the training scripts'
EPOCHS = train_3d.EPOCHS  # epochs of the 3D model
BASE_CHANNELS = train_3d.BASE_CHANNELS  # channels of its first stage
EPOCHS_2D = 3  # epochs of the 2D model; 0: none, the 3D model alone
MODEL_2D = train2d.MODEL  # its network; UNetnnUNetSmall is faster
SLICE_SIZE = 64  # pixels along each side of its slices
SLICES_PER_PLANE = 30  # slices of each plane of a volume, at most
BORDER = "voxel"  # between the parts, of all models together: voxel (the likelier part of each), or plane (coronal)
# system
SEEDS = [0]  # of the training; each seed is one more 3D and one more 2D model
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 where it is fast, fp16 on older GPUs
NUM_WORKERS = 0  # processes that augment; 0: the main one

RECIPES = {  # what a recipe changes
    "crops": {},
    "ensemble": {
        "seeds": [0, 1],
        "model_2d": "UNetnnUNetSmall",
        "border": "plane",
        "runs": f"{RUNS}_ensemble",
        "out_dir": f"{OUT_DIR}_ensemble",
    },
    "heads": {
        "epochs": train_3d.RECIPES["heads"]["epochs"],
        "runs": f"{RUNS}_heads",
        "out_dir": f"{OUT_DIR}_heads",
    },
}
# small slices, stored as they are and augmented anew in each epoch
PLAIN_SLICES = {"share_none": 1.0, "share_rotation": 0.0, "share_affine": 0.0, "share_flip": 0.0}
_OTHER = ("DATA_ROOT", "OUT_DIR", "NUM_WORKERS")  # constants of data_aug.py that make no other slices


def main():
    run(configure(globals()))


def run(cfg):
    """Runs the unfinished folds of a configuration. Returns the content of cross_validation.json if all five are
    complete, else None."""
    check(cfg)
    info = list_cases(cfg.data_root)[1]
    require(count_labels(info, cfg.data_root) == 2, f"{cfg.data_root}: cross-validation is for data sets of both parts")
    peer = read_peer(cfg.peer) if cfg.peer else {}
    try:
        for fold in cfg.folds:
            print(f"fold {fold}", flush=True)
            run_fold(cfg, fold)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on where it stopped") from None
    folders, names = [Path(cfg.runs) / f"fold_{fold}" for fold in range(5)], member_names(cfg)
    missing = [folder for folder in folders if not (folder / result_name(names) / "metrics.json").is_file()]
    if missing:
        print(f"still to run: {', '.join(map(str, missing))}; then: python cross_validate.py")
        return None
    for fold in range(5):
        check_fold(cfg, fold)
    result = {"constants": {name.upper(): value for name, value in sorted(vars(cfg).items())}}
    result |= collect_members(folders, names, peer)
    save(result, Path(cfg.out_dir) / "cross_validation.json")
    draw(result, peer, Path(cfg.out_dir) / "plots")
    for text, part in (("mean", result["interval"]), ("difference from nnU-Net", result.get("difference"))):
        if part:
            low, high = part["interval"]
            print(f"{text}: Dice {part['mean']:.4f} (95 % interval {low:.4f} to {high:.4f})")
    return result


def save(result, path):
    """Writes the result. An existing, different result is moved aside."""
    if path.is_file() and load_json(path, "python cross_validate.py") != json.loads(json.dumps(finite(result))):
        set_aside(path)
    save_json(path, result)


def check(cfg):
    """Raises UserError for invalid constants, before anything is trained."""
    refuse_several_processes("spread the folds with --folds='[0]' and so on")
    require(cfg.folds and set(cfg.folds) <= set(range(5)), f"--folds={cfg.folds}: expected numbers from 0 to 4")
    require(
        cfg.seeds and len(set(cfg.seeds)) == len(cfg.seeds), f"--seeds={cfg.seeds}: expected at least one, each once"
    )
    require(cfg.epochs_2d >= 0, f"--epochs_2d={cfg.epochs_2d}: expected 0 or more")
    fits = cfg.border == "voxel" or cfg.border == "plane" and len(member_names(cfg)) > 1
    require(fits, f"--border={cfg.border}: expected voxel or, of several models together, plane")
    for train, options in jobs(cfg, cfg.folds[0]):
        train.check(configure(vars(train), [], **options))


def member_names(cfg):
    """Returns the names of the models of a fold: 3d-0, 2d-0, 3d-1 and so on, where the number is the seed."""
    return [f"{kind}-{seed}" for seed in cfg.seeds for kind in (["3d", "2d"] if cfg.epochs_2d else ["3d"])]


def jobs(cfg, fold):
    """Returns the scripts of a fold, each with its options: [(module, {option: value}), ...]."""
    folder, slices = Path(cfg.runs) / f"fold_{fold}", str(Path(cfg.runs) / f"fold_{fold}" / "slices")
    same = {name: getattr(cfg, name) for name in ("data_root", "device", "amp", "num_workers")}
    recipe_3d, recipe_2d = ("heads", "heads") if cfg.recipe == "heads" else ("crops", "short")
    size = {"size": cfg.slice_size, "slices_per_plane": cfg.slices_per_plane, **PLAIN_SLICES}
    cases = {"data_root": cfg.data_root, "max_cases": cfg.max_cases}
    result = [(data_aug, {**cases, "fold": fold, "out_dir": slices, **size})] if cfg.epochs_2d else []
    for seed in cfg.seeds:
        options = {**same, **cases, "seed": seed, "fold": fold}
        options |= {"epochs": cfg.epochs, "base_channels": cfg.base_channels}
        options |= {"recipe": recipe_3d, "validate_every": cfg.epochs}  # the last epoch alone counts
        result.append((train_3d, {**options, "out_dir": f"{folder}/3d-{seed}"}))
        if cfg.epochs_2d:
            options = {**same, "seed": seed, "data_dir": slices, "epochs": cfg.epochs_2d, "model": cfg.model_2d}
            options |= {"recipe": recipe_2d, "validate_every": cfg.epochs_2d}
            result.append((train2d, {**options, "out_dir": f"{folder}/2d-{seed}"}))
    return result


def run_fold(cfg, fold):
    """Trains and scores the missing models of a fold."""
    folder, names, slices = Path(cfg.runs) / f"fold_{fold}", member_names(cfg), None
    for script, options in jobs(cfg, fold):
        job = configure(vars(script), [], **options)
        if script is data_aug:
            slices = job  # made when a training needs them
        elif (Path(job.out_dir) / "metrics.json").is_file():
            check_finished(script, job, slices)
            print(f"{job.out_dir} is done already")
        else:
            if script is train2d:
                make_slices(slices)
            job.resume = True
            script.run(job)
    shutil.rmtree(folder / "slices", ignore_errors=True)  # a quarter of a GB, and made again in seconds
    if len(names) > 1:
        score_fold(cfg, folder, names)


def check_finished(script, job, slices):
    """Raises UserError if a finished run was trained with other constants, or on other slices, than `job` asks for."""
    before = same_constants(job.out_dir, job, constants(vars(script)))
    if script is train2d:
        wrong = differences(before["data"].get("slices", {}), slices)
        require(not wrong, f"{job.out_dir} was trained on other slices ({', '.join(wrong)}); choose another --runs")


def differences(settings, slices):
    """Returns the names of the constants in which slices with these settings differ from a data_aug.py configuration."""
    defaults = {name: value for name, (value, _) in constants(vars(data_aug)).items() if name not in _OTHER}
    return [n.lower() for n, value in defaults.items() if settings.get(n, value) != getattr(slices, n.lower())]


def check_fold(cfg, fold):
    """Raises UserError if a finished run of a fold does not match the configuration."""
    slices = None
    for script, options in jobs(cfg, fold):
        job = configure(vars(script), [], **options)
        if script is data_aug:
            slices = job
        else:
            check_finished(script, job, slices)
    folder = Path(cfg.runs) / f"fold_{fold}" / result_name(member_names(cfg))
    border = load_json(folder / "metrics.json", "python cross_validate.py").get("border", "voxel")
    require(border == cfg.border, f"{folder} was scored with --border={border}; run this again without --folds")


def score_fold(cfg, folder, names):
    """Scores the models of a fold together, unless this is done already."""
    runs, out_dir = [f"{folder}/{name}" for name in names], folder / result_name(names)
    means = {run: load_json(f"{run}/metrics.json", "python cross_validate.py")["mean"] for run in runs}
    path = out_dir / "metrics.json"
    there = load_json(path, "python cross_validate.py") if path.is_file() else {}
    if (there.get("members"), there.get("border", "voxel")) != (means, cfg.border):
        device, dtype = set_up_device(cfg.device, cfg.amp)
        score_ensemble(runs, cfg.data_root, out_dir, True, device, dtype, cfg.border)


def make_slices(cfg):
    """Creates the slices of a data_aug.py configuration, unless they exist."""
    folder = Path(cfg.out_dir)
    if (folder / "index.csv").is_file():
        there = load_json(folder / "settings.json", "python cross_validate.py")
        if not differences(there, cfg):
            return
        shutil.rmtree(folder)
    data_aug.run(cfg)


def draw(result, peer, folder):
    """Draws cross_validation_peer.png, cross_validation_worst.png and cross_validation_volumes.png."""
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

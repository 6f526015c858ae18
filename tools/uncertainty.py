"""Compares three uncertainties on the 52 held-out crops: MC dropout, an ensemble of three seeds, and views of one model.

    python -m tools.uncertainty     trains the four models that are missing (half an hour on two CPU cores, two runs at a
                                    time) and scores them; goes on where it stopped

All have the recipe of heads and one view unless they are of views. Voxels count within 3 mm of the true outline. Writes
ABLATIONS/uncertainty_... (runs of train_3d.py), OUT and PICTURE.
"""

import time
from pathlib import Path

from hippo.data.cases import load_volumes
from hippo.data.intensity import normalise
from hippo.device import precision, set_up_device
from hippo.files import save_json
from hippo.heads.uncertainty import entropies, spread
from hippo.heads.window import VIEWS, Window, cut, on_grid
from hippo.models.checkpoint import load_model
from hippo.models.inference import predict_volume, sample_volume
from hippo.options import configure, run_script
from hippo.pictures import plots
from hippo.scoring.calibration import calibration_bins, expected_calibration_error, risk_coverage
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import bootstrap, bootstrap_of
from tools.ablations import train_all

import numpy as np
import torch
from scipy.ndimage import binary_dilation, binary_erosion
from scipy.stats import spearmanr

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
ABLATIONS = "ablations"  # folder of the runs
OUT = "uncertainty.json"  # file to write
PICTURE = "uncertainty.png"  # the reliability and risk-coverage curves
SEEDS = [0, 1, 2]  # of the ensemble; the first one is the single model, and that of the views
DROPOUT = 0.1  # of the model of MC dropout
SAMPLES = 20  # of MC dropout
WORKERS = 2  # runs at a time

_NEAR_MM = 3  # from the true outline, on either side


def main():
    run(configure(globals()))


def run(cfg):
    """Trains, measures, and writes the JSON file and the picture."""
    folders = {seed: Path(cfg.ablations) / f"uncertainty_seed{seed}" for seed in cfg.seeds}
    folders["dropout"] = Path(cfg.ablations) / "uncertainty_dropout"
    common = {"recipe": "heads", "data_root": cfg.data_root}
    jobs = {folder: {**common, "seed": seed} for seed, folder in folders.items() if seed != "dropout"}
    train_all({**jobs, folders["dropout"]: {**common, "dropout": cfg.dropout}}, cfg.workers)
    device, dtype = set_up_device("cpu")
    loaded = {name: load_model(folder / "last.pth") for name, folder in folders.items()}
    models = {name: model for name, (model, _) in loaded.items()}
    volumes = load_volumes(cfg.data_root, loaded["dropout"][1]["val_cases"])
    members = [models[seed] for seed in cfg.seeds]
    methods = {
        "one model": lambda image: one_view(members[:1], image, device, dtype),
        f"MC dropout, {cfg.samples} samples": lambda image: sample_volume(
            models["dropout"], image, device, dtype, cfg.samples
        ).numpy(),
        f"ensemble of {len(members)} seeds": lambda image: one_view(members, image, device, dtype),
        f"{1 + len(VIEWS)} views": lambda image: views(members[0], image, device, dtype),
    }
    rows = {name: [measure(method, volume) for volume in volumes] for name, method in methods.items()}
    results = {"threads": torch.get_num_threads(), "precision": precision(dtype), "cases": [v.id for v in volumes]}
    results["methods"] = {name: summarise(cases) for name, cases in rows.items()}
    save_json(cfg.out, results)
    curves = {name: (sum(case["bins"] for case in cases), pooled(cases)) for name, cases in rows.items()}
    plots.uncertainty(curves, cfg.picture, f"{len(volumes)} held-out cases, voxels within {_NEAR_MM} mm of the outline")
    print(f"wrote {cfg.out} and {cfg.picture}")


def one_view(models, image, device, dtype):
    """Probabilities (N, C, D, H, W) of each model."""
    return np.stack([predict_volume(model, image, device, dtype).numpy() for model in models])


def views(model, image, device, dtype):
    """Those of one model, of the volume as it is and turned as in window.VIEWS, brought back."""
    windows = [Window(np.zeros(3), image.shape, 1.0, False, turn) for turn in (np.eye(3), *VIEWS)]
    seen = [predict_volume(model, normalise(cut(image, np.eye(3), w)), device, dtype).numpy() for w in windows]
    return on_grid(list(zip(seen, windows)), image.shape, np.eye(3))[0]


def expected_dice(probabilities):
    """Returns the Dice that probabilities (3, D, H, W) predict for their own argmax labels, averaged over both parts.

    Each voxel of a label counts as correct with its probability. The true size of a part is taken as the sum of its
    probabilities.
    """
    labels = probabilities.argmax(0)
    values = []
    for part in (1, 2) if probabilities[2].any() else (1,):  # a model of the whole hippocampus has no part 2
        there = labels == part
        hits, total = probabilities[part][there].sum(), there.sum() + probabilities[part].sum()
        values.append(2 * hits / total if total else 1.0)
    return float(np.mean(values))


def measure(method, volume):
    """What counts of one case."""
    start = time.perf_counter()
    samples = method(volume.image)
    seconds = time.perf_counter() - start
    mean, truth = samples.mean(0), volume.label
    labels = mean.argmax(0)
    outline = binary_dilation(truth > 0, iterations=_NEAR_MM) & ~binary_erosion(truth > 0, iterations=_NEAR_MM)
    entropy, _ = entropies(samples)
    correct = (labels == truth)[outline]
    true, found = ((a > 0).sum() for a in (truth, labels))
    return {
        "seconds": seconds,
        "dice": np.mean([dice(labels == part, truth == part) for part in (1, 2)]),
        "bins": calibration_bins(mean.max(0)[outline], correct),
        "entropy": entropy[outline],
        "wrong": ~correct,
        "aurc": risk_coverage(entropy[outline], ~correct)[2],
        "expected_dice": expected_dice(mean),
        "spread_mm3": spread(samples)[2],
        "error_mm3": abs(float(found) - float(true)),
    }


def pooled(cases):
    """risk_coverage of the voxels of all cases."""
    return risk_coverage(*(np.concatenate([case[name] for case in cases]) for name in ("entropy", "wrong")))


def summarise(cases):
    """Means over cases, with intervals."""
    names = ("dice", "expected_dice", "spread_mm3", "error_mm3", "aurc", "seconds")
    column = {name: np.array([case[name] for case in cases]) for name in names}
    bins = np.array([case["bins"] for case in cases])
    result = {
        "seconds": float(column["seconds"].mean()),
        "dice": bootstrap(column["dice"]),
        "calibration_error": bootstrap_of(lambda i: expected_calibration_error(bins[i].sum(0)), len(cases)),
        "aurc_voxels": bootstrap(column["aurc"]),
        "aurc_cases": bootstrap_of(
            lambda i: risk_coverage(1 - column["expected_dice"][i], 1 - column["dice"][i])[2], len(cases)
        ),
        "spread_against_error": None,
    }
    if column["spread_mm3"].any():
        pair = column["spread_mm3"], column["error_mm3"]
        result["spread_against_error"] = bootstrap_of(lambda i: spearmanr(pair[0][i], pair[1][i]).statistic, len(cases))
    result["case_values"] = {name: values.tolist() for name, values in column.items()}
    return result


if __name__ == "__main__":
    run_script(main)

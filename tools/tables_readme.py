"""The blocks of the README."""

import csv
import io

from hippo.scoring.tables import markdown_table, with_interval
from tools.tables_3d import DEFAULT_SEEDS, mean_dice

import numpy as np


def sections(published):
    """{name: function that returns Markdown}."""
    return {
        "glance": lambda: glance(published),
        "sample": lambda: sample(published("sample.json")),
        "accuracy": lambda: accuracy(published),
    }


def glance(published):
    """What goes in, what comes out, how good, how fast, and the command."""
    folds, heads, ordinary = (published(f"{name}.json") for name in ("cross_validation", "heads", "ordinary_cpu"))
    batch = [part["speed"]["seconds_a_head"]["mean"] for part in (heads, ordinary)]
    count = len(heads["heads"]) - 1  # single runs: of all heads but hippodeep's example
    single = [part["speed"]["single_runs_seconds"] / count for part in (heads, ordinary)]
    minutes = np.mean(next(iter(folds["members"].values()))["training_minutes"])
    silver = heads["summary"]["dice"]
    rows = [
        [
            "**In**",
            "a T1-weighted MRI of a head (`.nii`, `.nii.gz`, `.mgz`, `.mgh`, `.hdr`/`.img`) in any orientation, a folder, or a BIDS study",
        ],
        [
            "**Out**",
            "labels on the scan's own grid, a picture to check them by, a table of volumes with intracranial volume (eTIV), quality and flags",
        ],
        [
            "**How good**",
            f"Dice (overlap, 1 is perfect) {folds['interval']['mean']:.4f} on {len(folds['cases'])} hand-labelled crops around "
            f"one hippocampus, cross-validated "
            f"(nnU-Net: {published.references['cross_validation']['mean_dice']:.4f}); "
            f"{silver['mean']:.2f} ± {silver['std']:.2f} with another network's masks on {len(heads['heads'])} whole heads",
        ],
        [
            "**How fast**",
            f"on two CPU cores with bf16 (16-bit arithmetic of recent processors): one head {single[0]:.0f} s, {batch[0]:.0f} s "
            f"each in a batch, training {minutes:.0f} min; without bf16: {single[1]:.0f} s, {batch[1]:.0f} s, "
            f"{ordinary['training_minutes']:.0f} min; no GPU is needed",
        ],
        ["**Run**", "`python predict.py head.nii.gz`"],
    ]
    return markdown_table(["", ""], rows)


def sample(rows):
    """The first columns of volumes.csv of one head."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return f"```text\n{text.getvalue()}```"


def accuracy(published):
    """The main figures, each with its peer."""
    folds, heads = published("cross_validation.json"), published("heads.json")
    peers, silver = published.references, heads["summary"]["dice"]
    nnunet = f"nnU-Net {peers['cross_validation']['mean_dice']:.4f}; difference "
    crops = f"{len(folds['cases'])} crops, 5-fold cross-validation"
    rows = []
    for name, part in (("3D alone", next(iter(folds["members"].values()))), ("3D and 2D together", folds)):
        cost = f"{np.mean(part['training_minutes']):.0f} min a fold"
        score = f"**{part['interval']['mean']:.4f}**"
        rows.append([f"{name}, {crops}", score, nnunet + with_interval(part["difference"]), cost])
    several = published("cross_validation_ensemble/cross_validation.json")
    name = f"3D and 2D together, {len(several['constants']['SEEDS'])} seeds of each, {crops}"
    cost = f"{np.mean(several['training_minutes']):.0f} min a fold on one core without bf16"
    rows.append([name, f"**{several['interval']['mean']:.4f}**", nnunet + with_interval(several["difference"]), cost])
    runs = [published.run(name)[0] for name in DEFAULT_SEEDS]
    scores = [np.mean(metrics["mean"]["dice"]) for metrics in runs]
    spread = f"**{mean_dice(scores)}** (seeds {min(scores):.4f} to {max(scores):.4f})"
    cost = f"{np.mean([metrics['training_minutes'] for metrics in runs]):.1f} min"
    held_out = f"3D alone, {len(runs[0]['cases'])} held-out crops, {len(runs)} seeds"
    rows.append([held_out, spread, f"nnU-Net {peers['same_52_cases']['mean_dice']:.4f}", cost])
    whole = f"{len(heads['heads'])} whole heads of two scanners, whole hippocampus"
    rows.append([whole, f"{silver['mean']:.3f} ± {silver['std']:.3f}", "hippodeep's masks: a silver standard", "–"])
    return markdown_table(["what is scored", "mean Dice", "compared with", "training on two cores"], rows)

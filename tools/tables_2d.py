"""The tables of the 2D runs, of 2D against 3D, and of the original's figures."""

import cross_validate
from hippo.scoring.tables import markdown_table, search_table
from hippo.training.search import RESULTS
from tools.tables_3d import labels_table, mean_dice

import numpy as np


def sections(published):
    """{name of a block: function that returns it}."""
    return {
        "short-2d": short_recipe,
        "slices-2d": lambda: slices_table(published("2d/metrics.json")),
        "steps-2d": lambda: steps_2d_table(published),
        "epochs-2d": lambda: epochs_2d_table(published("2d/history.json"), published("2d/metrics.json")),
        "labels-2d": lambda: labels_table(published("2d/metrics.json")),
        "2d-3d": lambda: both_table(published),
        "grid-2d": lambda: search_table(published(f"search_2d/{RESULTS}")),
        "grid-2d-rate": lambda: search_table(published(f"ablations/grid_2d_rate/{RESULTS}")),
        "grid-2d-networks": lambda: search_table(published(f"ablations/grid_2d_networks/{RESULTS}")),
        "original": lambda: original_table(published),
    }


def short_recipe():
    """The commands of the 2D recipe of minutes, with cross_validate.py's slices."""
    slices = {"size": cross_validate.SLICE_SIZE, "slices_per_plane": cross_validate.SLICES_PER_PLANE}
    options = " ".join(f"--{name}={value:g}" for name, value in (slices | cross_validate.PLAIN_SLICES).items())
    return (
        f"```bash\npython data_aug.py --out_dir=dataset_2d_64 {options}\n"
        "python train2d.py --recipe=short --data_dir=dataset_2d_64 --out_dir=checkpoints-2d-64\n```"
    )


def slices_table(metrics):
    """Scores of single slices, by both ways of deciding and of counting."""
    rows = []
    for key, decided in (("slices", "the volume's own voxels"), ("slices_by_pixel", "the slice's pixels")):
        ours, theirs = "truth or prediction has it", "always; 1 if both lack it (the original's)"
        for text, end in ((ours, ""), (theirs, "_original")):
            dice, nsd = (metrics[key][f"{name}{end}"] for name in ("dice", "nsd_1mm"))
            rows.append([decided, text, *(f"{v:.4f}" for v in (*dice, np.mean(dice), *nsd, np.mean(nsd)))])
    scores = ["Dice ant.", "Dice post.", "mean Dice", "NSD ant.", "NSD post.", "mean NSD"]
    return markdown_table(["predicted for", "a slice counts for a label if", *scores], rows)


def steps_2d_table(published):
    """Slices (by the original's definition and by ours) and fused volumes after each change of the 2D recipe."""
    epochs = published("ablations/2d_original/config.json")["constants"]["EPOCHS"]
    rows = []
    for text, name, key in (
        (f"the original recipe, but {epochs} epochs instead of 100", "ablations/2d_original", "slices_by_pixel"),
        (
            "a smaller network, larger rate, average of the weights, cross-entropy",
            "ablations/2d_stored_augmentation",
            "slices_by_pixel",
        ),
        ("+ augmentation anew in each epoch, smoothing of 32 pixels", "2d", "slices_by_pixel"),
        ("+ decided for the volume's own voxels", "2d", "slices"),
    ):
        metrics = published(f"{name}/metrics.json")
        parts = metrics[key]["dice"], metrics[key]["dice_original"], metrics["mean"]["dice"]
        rows.append([text, *map(mean_dice, parts), f"{metrics['training_minutes']:.1f}"])
    header = ["recipe", "slices, Dice", "slices, the original's definition", "fused volumes, Dice", "minutes"]
    return markdown_table(header, rows)


def epochs_2d_table(history, metrics):
    """Scores of single slices in the first, some middle and the best epoch."""
    n, best = len(history["seconds"]), metrics["best"]["epoch"]
    rows = []
    twenty, fifty = ("20 or the nearest", 20), ("50 or the nearest", min(50, n))
    middle = [twenty, fifty] if n > 20 else [("last", n)]
    names = ("train_dice", "val_dice", "train_nsd", "val_nsd")
    for text, epoch in (("first", 1), *middle, ("best", best)):
        cells = [f"{np.mean(history[name][epoch - 1]):.4f}" for name in names]
        rows.append([f"{text} ({epoch})", *cells, f"{sum(history['seconds'][:epoch]) / 60:.1f}"])
    return markdown_table(["epoch", "train Dice", "val Dice", "train NSD", "val NSD", "minutes"], rows)


def both_table(published):
    """The three runs side by side, with what they cost (results/benchmark.json)."""
    costs, folders = (
        published("benchmark.json")["runs"],
        ("results_hippocampus-3D", "checkpoints-2d-64", "checkpoints-2d"),
    )
    costs = [costs[f"{folder}/last.pth"] for folder in folders]
    runs = [(*published.run(name), cost) for name, cost in zip(("3d", "2d_short", "2d"), costs)]
    rows = []

    def row(text, cell):
        rows.append([text, *(cell(*run) for run in runs)])

    def both(dice):
        return f"{mean_dice(dice)} ({' / '.join(f'{d:.4f}' for d in dice)})"

    row("mean Dice (anterior / posterior)", lambda m, c, cost: both(m["mean"]["dice"]))
    for text, name, digits in (
        ("NSD at 1 mm", "nsd_1mm", 4),
        ("NSD at 2 mm", "nsd_2mm", 4),
        ("HD95 in mm", "hd95_mm", 2),
    ):
        row(f"mean {text}", lambda m, c, cost, name=name, digits=digits: f"{np.mean(m['mean'][name]):.{digits}f}")
    row("model", lambda m, c, cost: c["model"]["name"])
    row("parameters", lambda m, c, cost: f"{c['parameters']:,}")
    row("minutes of training, validation included", lambda m, c, cost: f"{m['training_minutes']:.1f}")
    row("seconds to predict a volume", lambda m, c, cost: f"{cost['predict']['seconds_per_volume']:.2f}")
    row("peak memory, prediction", lambda m, c, cost: f"{cost['predict']['peak_memory_mib']:,} MiB")
    row("peak memory, forward and backward pass", lambda m, c, cost: f"{cost['train']['peak_memory_mib']:,} MiB")
    return markdown_table(["", "3D", "2D, minutes", "2D, an hour"], rows)


def original_table(published):
    """Figures of the original's documents beside what was measured or counted here."""
    (metrics, config), metrics_2d = published.run("3d"), published("2d/metrics.json")
    train, val = (len(config["data"][f"{part}_cases"]) for part in ("train", "val"))
    dice, nsd_2mm = np.mean(metrics["mean"]["dice"]), np.mean(metrics["mean"]["nsd_2mm"])
    slices = (
        f"{100 * np.mean(metrics_2d['slices']['dice_original']):.1f} % per slice by the original's definition, "
        f"{100 * np.mean(metrics_2d['mean']['dice']):.1f} % for whole volumes"
    )
    rows = [
        ["98.9 % Dice in 3D", f"{100 * dice:.1f} % Dice; {100 * nsd_2mm:.1f} % NSD at 2 mm"],
        ["82.9 % Dice in 2D", slices],
        ["+16 % from 2D to 3D", "not one measure"],
        ["about 12,000 training slices", f"{(train + val) * 45:,} slices; {train * 45:,} of them for training"],
        ["394 volumes", f"{train + val} labelled volumes (the archive has 130 more without labels)"],
    ]
    return markdown_table(["the original documents", "measured or counted here"], rows)

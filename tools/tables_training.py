"""The tables of trainings: of one split in 3D and 2D, the steps that led to the recipe, the searches, cross-validation."""

import cross_validate
from hippo.scoring.statistics import bootstrap, paired_differences
from hippo.scoring.tables import markdown_table, with_interval
from hippo.training.grid import search_table
from hippo.training.search import RESULTS

import numpy as np

DEFAULT_SEEDS = ("3d", "ablations/seed_1", "ablations/seed_2")  # runs of the default recipe


def sections(published):
    """{name of a block: function that returns Markdown}."""
    steps = {("8", "two poolings, a smaller patch: **the default**"): DEFAULT_SEEDS}
    steps |= {("", "for comparison: step 5 for 24 epochs"): ["ablations/adamw_24_epochs"]}
    default = {("0", "**the default**"): DEFAULT_SEEDS}
    return {
        "epochs-3d": lambda: epochs_table(published("3d/history.json"), published("3d/metrics.json")),
        "labels-3d": lambda: labels_table(published("3d/metrics.json")),
        "seeds-3d": lambda: seeds_table(published),
        "time-3d": lambda: time_table(published),
        "steps-3d": lambda: steps_table(published, published.ablations("3d_*") | steps),
        "original-3d": lambda: original_3d(published),
        "without-3d": lambda: steps_table(published, default | published.ablations("default_*"), DEFAULT_SEEDS),
        "tta-3d": lambda: tta_table(published),
        "flips": lambda: flips_table(published),
        "grid-3d": lambda: search_table(published(f"search_3d/{RESULTS}")),
        "grid-3d-networks": lambda: search_table(published(f"ablations/networks/{RESULTS}")),
        "grid-3d-networks-minutes": lambda: search_table(equal_minutes(published)),
        "grid-3d-inr-rate": lambda: search_table(published(f"ablations/grid_3d_inr_rate/{RESULTS}")),
        "grid-3d-deep": lambda: search_table(published(f"ablations/grid_3d_deep_supervision/{RESULTS}")),
        "short-2d": short_recipe,
        "slices-2d": lambda: slices_table(published("2d/metrics.json")),
        "steps-2d": lambda: steps_2d_table(published),
        "epochs-2d": lambda: epochs_2d_table(published("2d/history.json"), published("2d/metrics.json")),
        "labels-2d": lambda: labels_table(published("2d/metrics.json")),
        "grid-2d": lambda: search_table(published(f"search_2d/{RESULTS}")),
        "grid-2d-rate": lambda: search_table(published(f"ablations/grid_2d_rate/{RESULTS}")),
        "grid-2d-networks": lambda: search_table(published(f"ablations/grid_2d_networks/{RESULTS}")),
        "cross-validation": lambda: cross_validation_table(published("cross_validation.json"), published.references),
        "unseen": lambda: unseen_table(published("cross_validation.json"), published("3d/config.json")),
        "cross-validation-ensemble": lambda: several_seeds(published),
    }


def mean_dice(values):
    """The mean of any array of Dice, as text."""
    return f"{np.mean(values):.4f}"


def labels_table(metrics):
    """Mean ± standard deviation of each label; n where a quantity is not defined in all cases."""
    rows = []
    for i, label in enumerate(("anterior", "posterior")):
        cells = []
        for name, digits in (("dice", 4), ("nsd_1mm", 4), ("nsd_2mm", 4), ("hd95_mm", 2)):
            n = sum(case[name][i] is not None for case in metrics["cases"].values())
            text = f"{metrics['mean'][name][i]:.{digits}f} ± {metrics['std'][name][i]:.{digits}f}"
            cells.append(text + f" (n = {n})" * (n < len(metrics["cases"])))
        rows.append([label, *cells])
    return markdown_table(["label", "Dice", "NSD at 1 mm", "NSD at 2 mm", "HD95 in mm"], rows)


def epochs_table(history, metrics):
    """Five epochs of a run, its final weights and its best epoch."""
    n, rows = len(history["seconds"]), []
    for text, share in (("first", 0), ("quarter", 1 / 4), ("half", 1 / 2), ("three quarters", 3 / 4), ("last", 1)):
        epoch = max(1, round(share * n))
        cells = [f"{v:.4f}" for name in ("train_dice", "val_dice", "val_nsd") for v in history[name][epoch - 1]]
        loss, minutes = f"{history['val_loss'][epoch - 1]:.4f}", f"{sum(history['seconds'][:epoch]) / 60:.1f}"
        rows.append([f"{text} ({epoch})", *cells, loss, minutes])
    for text, mean in (
        (f"final weights, TTA {'on' if metrics['tta'] else 'off'}", metrics["mean"]),
        (f"best epoch ({metrics['best']['epoch']}) by validation Dice, the same TTA", metrics["best"]["mean"]),
    ):
        rows.append([text, "–", "–", *(f"{v:.4f}" for name in ("dice", "nsd_1mm") for v in mean[name]), "–", "–"])
    parts = [f"{name} {part}." for name in ("train Dice", "val Dice", "val NSD") for part in ("ant", "post")]
    return markdown_table(["epoch", *parts, "val loss", "minutes"], rows)


def flips_table(published):
    """Runs with mirrored training images, along one axis each, compared case by case to one without."""
    rows, none = [], published.run("ablations/flips_none")
    for axes, meaning in (("none", "none"), ("x", "left-right"), ("y", "front-back"), ("z", "up-down")):
        name = f"ablations/flips_{axes}"
        (metrics, config), history = published.run(name), published(f"{name}/history.json")
        plain, tta = history["val_dice"][-1], metrics["mean"]["dice"]
        change = "–" if axes == "none" else with_interval(difference([(metrics, config)], [none]))
        rows.append([meaning, mean_dice(plain), mean_dice(tta), change, len(history["seconds"])])
    return markdown_table(["flips", "Dice, one view", "Dice, TTA", "difference of TTA (95 % interval)", "epochs"], rows)


def seeds_table(published):
    """The default recipe with three seeds."""
    rows = []
    for name in DEFAULT_SEEDS:
        metrics, config = published.run(name)
        dice, nsd = metrics["mean"]["dice"], metrics["mean"]["nsd_1mm"]
        rows.append([config["constants"]["SEED"], np.mean(dice), *dice, np.mean(nsd), metrics["training_minutes"]])
    mean = np.mean(rows, axis=0)
    text = [[f"{row[0]:.0f}", *(f"{v:.4f}" for v in row[1:5]), f"{row[5]:.1f}"] for row in rows]
    text.append(["**mean**", f"**{mean[1]:.4f}**", *(f"{v:.4f}" for v in mean[2:5]), f"{mean[5]:.1f}"])
    return markdown_table(["seed", "mean Dice", "anterior", "posterior", "NSD at 1 mm", "minutes"], text)


def time_table(published):
    """Dice of each seed of the default recipe after each epoch, and the mean minutes that it took."""
    histories = [published(f"{name}/history.json") for name in DEFAULT_SEEDS]
    dice = np.array([np.mean(history["val_dice"], axis=1) for history in histories])  # (seeds, epochs)
    minutes = np.mean([np.cumsum(history["seconds"]) for history in histories], axis=0) / 60
    rows = [
        [epoch + 1, f"{time:.1f}", mean_dice(dice[:, epoch]), ", ".join(map(mean_dice, dice[:, epoch]))]
        for epoch, time in enumerate(minutes)
    ]
    return markdown_table(["epoch", "minutes", "mean Dice, one view", "each seed"], rows)


def tta_table(published):
    """The final weights without and with test-time augmentation."""
    rows = []
    for name in DEFAULT_SEEDS:
        metrics, config = published.run(name)
        plain, tta = np.mean(published(f"{name}/history.json")["val_dice"][-1]), np.mean(metrics["mean"]["dice"])
        rows.append([config["constants"]["SEED"], f"{plain:.4f}", f"{tta:.4f}", f"{tta - plain:+.4f}"])
    return markdown_table(["seed", "mean Dice, one view", "mean Dice, test-time augmentation", "difference"], rows)


def equal_minutes(published):
    """The search over networks, but those that take longer than No INR with fewer epochs (see tools.ablations): {key: entry}."""
    found = published(f"ablations/networks/{RESULTS}")
    for folder in sorted(published.folder.glob("ablations/networks_minutes_*")):
        found |= published(f"ablations/{folder.name}/{RESULTS}")
    return found


def steps_table(published, experiments, reference=()):
    """One row for each experiment: {(number, what changed): names of the runs of its seeds}.

    Each is compared, paired by case and seed, to the runs that `reference` names or, without any, to the row above.
    """
    rows, above = [], list(reference)
    for (number, changed), names in experiments.items():
        runs = [published.run(name) for name in names]
        scores = [np.mean(metrics["mean"]["dice"]) for metrics, _ in runs]
        config, minutes = runs[0][1], np.mean([metrics["training_minutes"] for metrics, _ in runs])
        row = [number, changed, f"{config['parameters']:,}", config["constants"]["EPOCHS"], f"{np.mean(scores):.4f}"]
        row += [", ".join(f"{s:.4f}" for s in scores), f"{minutes:.1f}"]
        compared = above and above != list(names)
        row.append(with_interval(difference(runs, [published.run(name) for name in above])) if compared else "–")
        rows.append(row)
        above = above if reference else list(names)
    header = ["", "recipe", "parameters", "epochs", "mean Dice", "each seed", "minutes"]
    return markdown_table(
        [*header, f"difference from the {'default' if reference else 'row above'} (95 % interval)"], rows
    )


def difference(runs, others):
    """statistics.bootstrap of the differences of runs, each (metrics.json, config.json), paired by case and seed."""
    ours, theirs = (
        [
            {"seed": config["constants"]["SEED"], "case_dice": {c: v["dice"] for c, v in metrics["cases"].items()}}
            for metrics, config in part
        ]
        for part in (runs, others)
    )
    return bootstrap(paired_differences(ours, theirs))


def original_3d(published):
    """The epochs of the original 3D recipe that say where it overfits, and its best epoch beside the recorded one."""
    name = "ablations/3d_0_the_original_recipe"
    history, (metrics, _) = published(f"{name}/history.json"), published.run(name)
    (recorded,) = (r["dice"] for r in published.references["others"] if r["who"].startswith("the original design"))
    lowest, best, last = int(np.argmin(history["val_loss"])) + 1, metrics["best"]["epoch"], len(history["seconds"])
    rows = []
    for text, epoch, tta in (
        ("lowest validation loss", lowest, None),
        ("best validation Dice, chosen on the scored cases", best, metrics["best"]["mean"]["dice"]),
        ("last", last, metrics["mean"]["dice"]),
    ):
        losses = [f"{history[f'{part}_loss'][epoch - 1]:.4f}" for part in ("train", "val")]
        dice = [mean_dice(history["val_dice"][epoch - 1]), mean_dice(tta) if tta else "–"]
        rows.append([f"{text} ({epoch})", *losses, *dice])
    rows.append(["the original's own history, so chosen", "–", "–", recorded, "–"])
    return markdown_table(["epoch", "training loss", "validation loss", "Dice, one view", "Dice, TTA"], rows)


# ---- 2D


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


# ---- cross-validation


def member_label(name, total):
    """What a member of cross_validation.json is called in a table; "" is all of them together."""
    if name:
        return f"{name[:2].upper()} alone, seed {name[3:]}"
    return f"**all {total} together**" if total > 2 else "**3D and 2D together**"


def cross_validation_table(result, references):
    """Each model alone, all together, and nnU-Net, on all folds."""
    members, rows = {**result["members"], "": result}, []
    for name, part in members.items():
        (low, high), dice = part["interval"]["interval"], part["mean"]["dice"]
        each = ", ".join(mean_dice(fold["mean"]["dice"]) for fold in part["folds"])
        row = [member_label(name, len(members) - 1), f"**{part['interval']['mean']:.4f}** ({low:.4f} to {high:.4f})"]
        row += [f"{dice[0]:.4f} / {dice[1]:.4f}", each, with_interval(part["difference"])]
        rows.append([*row, f"{np.mean(part['training_minutes']):.1f}"])
    peer = references["cross_validation"]
    rows.append([peer["who"], f"{peer['mean_dice']:.4f}", peer["labels"], peer["folds"], "–", peer["cost"]])
    header = ["who", f"mean Dice, {len(result['cases'])} cases (95 % interval)", "anterior / posterior", "folds 0 to 4"]
    return markdown_table([*header, "difference from nnU-Net, case by case", "minutes of training a fold"], rows)


def unseen_table(result, config):
    """The same on the cases of which no score chose the recipe, and the gain of all together over 3D alone."""
    unseen, theirs = config["data"]["train_cases"], cross_validate.read_peer(cross_validate.PEER)
    scores = {name: part["dice"] for name, part in result["members"].items()}
    scores[""] = {case: values["dice"] for case, values in result["cases"].items()}
    rows = [["nnU-Net v1 3d_fullres, official release", mean_dice([theirs[case] for case in unseen]), "–"]]
    for name, dice in scores.items():
        ours = [np.mean(dice[case]) for case in unseen]
        difference = bootstrap([d - theirs[case] for d, case in zip(ours, unseen)])
        rows.append([member_label(name, len(scores) - 1), mean_dice(ours), with_interval(difference)])
    first, total = (member_label(name, len(scores) - 1).strip("*") for name in (next(iter(scores)), ""))
    table = markdown_table(["who", f"mean Dice, {len(unseen)} cases", "difference (95 % interval)"], rows)
    return f"{table}\n\nOn all {len(result['cases'])} cases, {total} minus {first}: {with_interval(result['gain'])}."


def several_seeds(published):
    """The cross-validation of several seeds of both models, on all cases and on those that did not choose the default recipe."""
    result = published("cross_validation_ensemble/cross_validation.json")
    tables = cross_validation_table(result, published.references), unseen_table(result, published("3d/config.json"))
    border = f"The border as a plane, instead of voxel by voxel: {with_interval(result['border_gain'])}."
    return "\n\n".join([*tables, border])

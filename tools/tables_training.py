"""The tables of trainings: of one split in 3D and 2D, the steps that led to the recipe, the searches, cross-validation."""

import cross_validate
from hippo.scoring.statistics import bootstrap, paired_differences
from hippo.scoring.tables import markdown_table, with_interval
from hippo.training.grid import search_comparisons, search_groups
from hippo.training.search import RESULTS

import numpy as np

DEFAULT_SEEDS = ("3d", "ablations/seed_1", "ablations/seed_2")  # runs of the default recipe
SEARCHES = {
    "3D, INR": "search_3d",
    "3D, networks": "ablations/networks",
    "3D, deep supervision": "ablations/grid_3d_deep_supervision",
    "2D": "search_2d",
    "2D, networks": "ablations/grid_2d_networks",
}  # {name in the table: folder}


def sections(published):
    """{name of a block: function that returns Markdown}."""
    steps = {("8", "two poolings, a smaller patch: **the default**"): DEFAULT_SEEDS}
    steps |= {("", "for comparison: step 5 for 24 epochs"): ["ablations/adamw_24_epochs"]}
    default = {("0", "**the default**"): DEFAULT_SEEDS}
    return {
        "labels-3d": lambda: labels_table(published("3d/metrics.json")),
        "seeds-3d": lambda: seeds_table(published),
        "steps-3d": lambda: steps_table(published, published.ablations("3d_*") | steps),
        "original-3d": lambda: original_3d(published),
        "without-3d": lambda: steps_table(published, default | published.ablations("default_*"), DEFAULT_SEEDS),
        "tta-3d": lambda: tta_table(published),
        "flips": lambda: flips_table(published),
        "searches": lambda: searches_table(published),
        "inr-rate": lambda: differences(published(f"ablations/grid_3d_inr_rate/{RESULTS}")),
        "equal-minutes": lambda: differences(equal_minutes(published)),
        "short-2d": short_recipe,
        "slices-2d": lambda: slices_table(published("2d/metrics.json")),
        "steps-2d": lambda: steps_2d_table(published),
        "cross-validation": lambda: one_seed(published),
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
        dice, nsd = (np.mean(metrics["mean"][key]) for key in ("dice", "nsd_1mm"))
        rows.append([config["constants"]["SEED"], dice, nsd, metrics["training_minutes"]])
    mean = np.mean(rows, axis=0)
    dices = "; ".join(f"seed {seed} {dice:.4f}" for seed, dice, *_ in rows)
    return f"{dices}. Mean Dice **{mean[1]:.4f}**, NSD at 1 mm {mean[2]:.4f}, {mean[3]:.1f} minutes."


def tta_table(published):
    """The final weights without and with test-time augmentation."""
    rows = []
    for name in DEFAULT_SEEDS:
        metrics, config = published.run(name)
        plain, tta = np.mean(published(f"{name}/history.json")["val_dice"][-1]), np.mean(metrics["mean"]["dice"])
        rows.append([config["constants"]["SEED"], f"{plain:.4f}", f"{tta:.4f}", f"{tta - plain:+.4f}"])
    return markdown_table(["seed", "mean Dice, one view", "mean Dice, test-time augmentation", "difference"], rows)


def searches_table(published):
    """One row for each configuration of each search, compared with the first of its search, No INR."""
    rows = []
    for search, folder in SEARCHES.items():
        groups = search_groups(published(f"{folder}/{RESULTS}"))
        comparisons = search_comparisons(groups)
        for key, part in groups.items():
            each = ", ".join(mean_dice(run["dice"]) for run in part["runs"])
            change = with_interval(comparisons[key]) if key in comparisons else "–"
            rows.append([search, part["label"], each, change])
    header = ["search", "configuration", "mean Dice, each seed", "difference from No INR (interval)"]
    return markdown_table(header, rows)


def differences(found):
    """The differences from No INR in a search, in one sentence."""
    groups = search_groups(found)
    texts = [f"{groups[key]['label']} {with_interval(part)}" for key, part in search_comparisons(groups).items()]
    return f"Differences from No INR: {'; '.join(texts)}."


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
    """Scores of single slices, predicted for the volume's own voxels, by both ways of counting."""
    rows = []
    for text, end in (("truth or prediction has it", ""), ("always; 1 if both lack it (the original's)", "_original")):
        rows.append([text, *(mean_dice(metrics["slices"][f"{name}{end}"]) for name in ("dice", "nsd_1mm"))])
    return markdown_table(["a slice counts for a label if", "mean Dice", "mean NSD at 1 mm"], rows)


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


# ---- cross-validation


def member_label(name, total):
    """What a member of cross_validation.json is called in a table; "" is all of them together."""
    if name:
        return f"{name[:2].upper()} alone, seed {name[3:]}"
    return f"**all {total} together**" if total > 2 else "**3D and 2D together**"


def cross_validation_table(result, references, unseen=(), only_all=False):
    """Each model alone (not if only_all), all together, and nnU-Net, on all folds; and on the cases `unseen`, if any."""
    names = [""] if only_all else [*result["members"], ""]
    rows, peer = [], references["cross_validation"]
    for name in names:
        part = result["members"][name] if name else result
        (low, high), dice = part["interval"]["interval"], part["mean"]["dice"]
        row = [
            member_label(name, len(result["members"])),
            f"**{part['interval']['mean']:.4f}** ({low:.4f} to {high:.4f})",
        ]
        row += [f"{dice[0]:.4f} / {dice[1]:.4f}", with_interval(part["difference"])]
        row += [with_interval(unseen_difference(result, name, unseen))] if unseen else []
        rows.append([*row, f"{np.mean(part['training_minutes']):.1f}"])
    if not only_all:
        rows.append(
            [peer["who"], f"{peer['mean_dice']:.4f}", peer["labels"], *["–"] * (len(rows[0]) - 4), peer["cost"]]
        )
    header = ["who", f"mean Dice, {len(result['cases'])} cases (95 % interval)", "anterior / posterior"]
    header += ["difference from nnU-Net, case by case"] + [f"the same on {len(unseen)} cases"] * bool(unseen)
    return markdown_table([*header, "minutes of training a fold"], rows)


def unseen_difference(result, name, unseen):
    """statistics.bootstrap of the differences of a member, or of all together (""), from nnU-Net on some cases."""
    theirs = cross_validate.read_peer(cross_validate.PEER)
    scores = result["members"][name]["dice"] if name else {case: v["dice"] for case, v in result["cases"].items()}
    return bootstrap([np.mean(scores[case]) - theirs[case] for case in unseen])


def one_seed(published):
    """The cross-validation of the default recipe, and the gain of both models together."""
    result, unseen = published("cross_validation.json"), published("3d/config.json")["data"]["train_cases"]
    return f"{cross_validation_table(result, published.references, unseen)}\n\n{gain(result)}"


def several_seeds(published):
    """The cross-validation of several seeds of both models together, and their gain."""
    result = published("cross_validation_ensemble/cross_validation.json")
    unseen = published("3d/config.json")["data"]["train_cases"]
    table = cross_validation_table(result, published.references, unseen, only_all=True)
    border = f"The border as a plane, instead of voxel by voxel: {with_interval(result['border_gain'])}."
    return f"{table}\n\n{gain(result)} {border}"


def gain(result):
    """What all together gain over the first alone, in one sentence."""
    count = len(result["members"])
    first, total = (member_label(name, count).strip("*") for name in (next(iter(result["members"])), ""))
    return f"On all {len(result['cases'])} cases, {total} minus {first}: {with_interval(result['gain'])}."

"""The tables of the cross-validations, of models together, of 2D against 3D, and of what others published."""

import cross_validate
from hippo.scoring.statistics import bootstrap
from hippo.scoring.tables import markdown_table, with_interval
from tools.tables_runs import DEFAULT_SEEDS, mean_dice

import numpy as np


def sections(published):
    """{name of a block: function that returns Markdown}."""
    return {
        "together": lambda: ensemble_table(
            published("ensemble/metrics.json"), published("ablations/three_seeds/metrics.json")
        ),
        "errors": lambda: errors_table(published("cross_validation.json")["mean"]),
        "cross-validation": lambda: cross_validation_table(published("cross_validation.json"), published.references),
        "unseen": lambda: unseen_table(published("cross_validation.json"), published("3d/config.json")),
        "cross-validation-ensemble": lambda: several_seeds(published),
        "comparison-3d": lambda: comparison_table(published),
        "2d-3d": lambda: both_table(published),
        "original": lambda: original_table(published),
        "cross-validation-heads": lambda: both_recipes(published),
    }


def ensemble_table(metrics, several):
    """Both runs and their average; and, for comparison, the average of several seeds of the first."""
    parts = [*metrics["members"].items(), ("**3D and 2D together**", metrics["mean"])]
    parts.append((f"for comparison: {len(several['members'])} seeds of the 3D run together", several["mean"]))
    rows = [
        [name, mean_dice(part["dice"]), *(f"{d:.4f}" for d in part["dice"]), mean_dice(part["nsd_1mm"])]
        for name, part in parts
    ]
    return markdown_table(["run", "mean Dice", "anterior", "posterior", "NSD at 1 mm"], rows)


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
        rows.append(
            [
                member_label(name, len(members) - 1),
                f"**{part['interval']['mean']:.4f}** ({low:.4f} to {high:.4f})",
                f"{dice[0]:.4f} / {dice[1]:.4f}",
                ", ".join(mean_dice(fold["mean"]["dice"]) for fold in part["folds"]),
                with_interval(part["difference"]),
                f"{np.mean(part['training_minutes']):.1f}",
            ]
        )
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
    tables = [
        cross_validation_table(result, published.references),
        unseen_table(result, published("3d/config.json")),
        f"The border as a plane, instead of voxel by voxel: {with_interval(result['border_gain'])}.",
    ]
    return "\n\n".join(tables)


def errors_table(mean):
    """What errors of the outline and of the border between the parts cost, in the cross-validation of both models."""
    rows = [
        ["the two parts", mean_dice(mean["dice"])],
        ["the whole hippocampus, as one label", mean_dice(mean["dice_whole"])],
        [
            "the two parts, were the border right wherever truth and prediction overlap",
            mean_dice(mean["dice_true_border"]),
        ],
    ]
    return markdown_table(["what is scored", "mean Dice"], rows)


def comparison_table(published):
    """Our figures beside those that others published."""
    references, folds = published.references, published("cross_validation.json")
    runs = [published(f"{name}/metrics.json") for name in DEFAULT_SEEDS]
    dice, same = np.array([metrics["mean"]["dice"] for metrics in runs]), references["same_52_cases"]
    rows = [
        [
            "**this repository**, 3D",
            f"{len(runs[0]['cases'])} held-out cases, final weights, mean of {len(runs)} seeds",
            f"**{dice.mean():.4f}** ({' / '.join(f'{d:.4f}' for d in dice.mean(0))})",
            "measured, the table of seeds above",
        ],
        [same["who"], same["protocol"], f"{same['mean_dice']:.4f}", same["source"]],
    ]
    for name, part in (("3D", next(iter(folds["members"].values()))), ("3D and 2D (three planes) together", folds)):
        dice = part["mean"]["dice"]
        rows.append(
            [
                f"**this repository**, {name}",
                f"5-fold cross-validation, {len(folds['cases'])} cases",
                f"**{mean_dice(dice)}** ({dice[0]:.4f} / {dice[1]:.4f})",
                "measured, see above",
            ]
        )
    rows += [[r["who"], r["protocol"], r["dice"], r["source"]] for r in references["others"]]
    return markdown_table(["who", "protocol", "mean Dice (anterior / posterior)", "source"], rows)


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


def both_recipes(published):
    """The cross-validation of the heads recipe, and its difference, case by case, from the default one."""
    heads, crops = (published(f"{folder}cross_validation.json") for folder in ("cross_validation_heads/", ""))
    members = [list(result["members"].values()) for result in (heads, crops)]
    pairs = {f"{who} alone": [row[i]["dice"] for row in members] for i, who in enumerate(("3D", "2D"))}
    pairs["both together"] = [{name: c["dice"] for name, c in result["cases"].items()} for result in (heads, crops)]
    changes = []
    for who, (ours, theirs) in pairs.items():
        change = bootstrap([np.mean(ours[name]) - np.mean(theirs[name]) for name in ours])
        changes.append(f"{who} {with_interval(change)}")
    table = cross_validation_table(heads, published.references)
    return f"{table}\n\nDifference from the default recipe, case by case: {'; '.join(changes)}."

"""Writes the numbers of README.md and MODEL_IMPROVEMENTS.md from the result files, so that they cannot disagree.

    python -m tools.report        rewrites what stands between <!-- name --> and <!-- /name --> in both

Reads history.json, metrics.json and config.json of the 3D and the 2D run, the runs in ablations/, the grid searches,
tools/benchmark.json, and references/published.json for what others published.
"""

import re
from pathlib import Path

import numpy as np

import cross_validate
from hippo.errors import require
from hippo.files import atomic, load_json
from hippo.options import configure, run_script
from hippo.scoring.tables import markdown_table
from hippo.training import search

PAGES = ["README.md", "MODEL_IMPROVEMENTS.md"]  # files to rewrite
RESULTS_3D = "results_hippocampus-3D"  # run that it reports
RESULTS_2D = "checkpoints-2d"  # 2D run that it reports
PARTNER = "checkpoints-2d-64"  # the short 2D run
BENCHMARK = "tools/benchmark.json"  # what tools/benchmark.py measured
ABLATIONS = "ablations"  # folder of further runs, each with one thing changed
ENSEMBLE = "results_ensemble"  # both runs scored together
SEARCHES = ["finetuning_results-2d", "finetuning_results-3d"]  # grid searches
REFERENCES = "references/published.json"  # published figures, each with its source

_COMMANDS = "its command in README.md or MODEL_IMPROVEMENTS.md"


def main():
    cfg = configure(globals())
    texts = {page: rewrite(Path(page).read_text(encoding="utf-8"), sections(cfg)) for page in cfg.pages}
    for page, text in texts.items():
        with atomic(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"{page} is up to date with the result files")


def rewrite(text, blocks):
    """The text with each block that it has marks for put between them. blocks: {name: function that returns it}."""
    marks = re.findall(r"^<!-- /(\S+) -->$", text, re.M)
    require(
        marks, "the page has no marks such as <!-- headline --> and <!-- /headline -->; put them where a block belongs"
    )
    for name in marks:
        require(name in blocks, f"the page has a mark <!-- {name} -->; expected one of {', '.join(blocks)}")
        block = blocks[name]()
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)"
        text = re.sub(pattern, lambda m, block=block: f"{m[1]}{block}\n{m[2]}", text, flags=re.S)
    return text


def sections(cfg):
    """The generated blocks of the README: {name: function that returns Markdown}."""
    three, two = read_run(cfg.results_3d, "python train_3d.py"), read_run(cfg.results_2d, "python train2d.py")
    references = load_json(cfg.references, "git checkout references/published.json")

    def benchmark():
        return load_json(cfg.benchmark, "python -m tools.benchmark")

    def default_runs():
        return [run_row(folder) for folder in seeds(Path(cfg.results_3d), Path(cfg.ablations))]

    return {
        "models": lambda: models_table(benchmark()["models"]),
        "slices-time": lambda: slices_time(benchmark()["slices"]),
        "headline": lambda: headline(*three("config", "cross_validation"), references, default_runs()),
        "epochs-3d": lambda: epochs_table(*three("history", "metrics")),
        "labels-3d": lambda: labels_table(*three("metrics")),
        "seeds-3d": lambda: seeds_table(Path(cfg.results_3d), Path(cfg.ablations)),
        "steps-3d": lambda: steps_3d_table(Path(cfg.results_3d), Path(cfg.ablations)),
        "original-3d": lambda: original_3d(
            Path(cfg.ablations) / "3d_0_the_original_recipe", *three("config"), references
        ),
        "without-3d": lambda: without_table(Path(cfg.results_3d), Path(cfg.ablations)),
        "tta-3d": lambda: tta_table(seeds(Path(cfg.results_3d), Path(cfg.ablations))),
        "together": lambda: together_table(Path(cfg.ensemble), Path(cfg.ablations) / "three_seeds"),
        "errors": lambda: errors(Path(cfg.results_3d)),
        "cross-validation": lambda: cross_validation_table(Path(cfg.results_3d), references),
        "peers": lambda: peers_table(benchmark()),
        "metrics-time": lambda: metrics_time(benchmark()["metrics"]),
        "flips": lambda: flips_table(Path(cfg.ablations)),
        "comparison-3d": lambda: comparison_table(*three("cross_validation"), references, default_runs()),
        "slices-2d": lambda: slices_table(*two("metrics")),
        "steps-2d": lambda: steps_2d_table(Path(cfg.results_2d), Path(cfg.ablations)),
        "epochs-2d": lambda: epochs_2d_table(*two("history", "metrics")),
        "labels-2d": lambda: labels_table(*two("metrics")),
        "2d-3d": lambda: both_table(
            [
                ("3D", cfg.results_3d, *three("metrics", "config")),
                ("2D, minutes", cfg.partner, *read_run(cfg.partner, _COMMANDS)("metrics", "config")),
                ("2D, an hour", cfg.results_2d, *two("metrics", "config")),
            ],
            benchmark()["runs"],
        ),
        "grid-2d": lambda: search_results(cfg.searches[0], "python grid_search.py"),
        "grid-2d-rate": lambda: search_results(Path(cfg.ablations) / "grid_2d_rate", _COMMANDS),
        "grid-3d": lambda: search_results(cfg.searches[1], "python grid_search_3d.py"),
        "grid-3d-inr-rate": lambda: search_results(Path(cfg.ablations) / "grid_3d_inr_rate", _COMMANDS),
        "original": lambda: original_table(*three("metrics", "config"), Path(cfg.results_2d) / "metrics.json"),
    }


def read_run(folder, made_by):
    """A function that returns the content of the named JSON files of a run."""
    return lambda *names: [load_json(Path(folder) / f"{name}.json", made_by) for name in names]


def mean_dice(values):
    return f"{np.mean(values):.4f}"


def headline(config, folds, references, runs):
    (_, alone), *more = folds["members"].items()
    text = (
        f"**Mean Dice {alone['interval']['mean']:.4f}** in five-fold cross-validation on nnU-Net's own folds, {len(folds['cases'])} cases, "
        f"after **{np.mean(alone['training_minutes']):.1f} minutes** of training a fold on {config['environment']['threads']} CPU cores, with "
        f"{config['parameters'] / 1e6:.2f} M parameters; nnU-Net's official release: {references['cross_validation']['mean_dice']:.4f} "
        f"(difference case by case {interval(alone['difference'])})."
    )
    if more:
        text += (
            f" Averaged with a 2D model, {np.mean(folds['training_minutes']):.0f} minutes a fold in all: "
            f"**{folds['interval']['mean']:.4f}** ({interval(folds['difference'])})."
        )
    scores = [np.mean(metrics["mean"]["dice"]) for metrics, _ in runs]
    return (
        f"{text} On the {len(runs[0][0]['cases'])} held-out cases of the default split, {len(scores)} seeds score {min(scores):.4f} to "
        f"{max(scores):.4f}, and nnU-Net {references['same_52_cases']['mean_dice']:.4f}."
    )


def interval(part):
    """A difference with its 95 % interval."""
    return "{:+.4f}, 95 % interval {:+.4f} to {:+.4f}".format(part["mean"], *part["interval"])


def labels_table(metrics):
    rows = []
    for i, label in enumerate(("anterior", "posterior")):
        cells = [
            f"{metrics['mean'][name][i]:.{digits}f} ± {metrics['std'][name][i]:.{digits}f}"
            for name, digits in (("dice", 4), ("nsd_1mm", 4), ("nsd_2mm", 4), ("hd95_mm", 2))
        ]
        rows.append([label, *cells])
    return markdown_table(["label", "Dice", "NSD at 1 mm", "NSD at 2 mm", "HD95 in mm"], rows)


def epochs_table(history, metrics):
    n = len(history["seconds"])
    rows = []
    for text, share in (("first", 0), ("quarter", 1 / 4), ("half", 1 / 2), ("three quarters", 3 / 4), ("last", 1)):
        epoch = max(1, round(share * n))
        cells = [f"{v:.4f}" for name in ("train_dice", "val_dice", "val_nsd") for v in history[name][epoch - 1]]
        loss, minutes = f"{history['val_loss'][epoch - 1]:.4f}", f"{sum(history['seconds'][:epoch]) / 60:.1f}"
        rows.append([f"{text} ({epoch})", *cells, loss, minutes])
    blank = ["–"] * 2
    for text, mean in (
        (f"final weights, TTA {'on' if metrics['tta'] else 'off'}", metrics["mean"]),
        (f"best epoch ({metrics['best']['epoch']}) by validation Dice, the same TTA", metrics["best"]["mean"]),
    ):
        rows.append([text, *blank, *(f"{v:.4f}" for name in ("dice", "nsd_1mm") for v in mean[name]), "–", "–"])
    parts = [f"{name} {part}." for name in ("train Dice", "val Dice", "val NSD") for part in ("ant", "post")]
    return markdown_table(["epoch", *parts, "val loss", "minutes"], rows)


def flips_table(folder):
    rows = []
    for axes, meaning in (("none", "none"), ("x", "left-right"), ("y", "front-back"), ("z", "up-down")):
        run = folder / f"flips_{axes}"
        metrics, history = read_run(run, _COMMANDS)("metrics", "history")
        plain, tta = history["val_dice"][-1], metrics["mean"]["dice"]
        rows.append([meaning, mean_dice(plain), mean_dice(tta), len(history["seconds"])])
    return markdown_table(["flips", "mean Dice, one view", "mean Dice, test-time augmentation", "epochs"], rows)


def run_row(folder):
    """metrics.json and config.json of a run."""
    return read_run(folder, _COMMANDS)("metrics", "config")


def seeds(default, ablations):
    """The runs of the default recipe."""
    return [default, ablations / "seed_1", ablations / "seed_2"]


def seeds_table(default, ablations):
    """The default recipe with three seeds."""
    rows = []
    for folder in seeds(default, ablations):
        metrics, config = run_row(folder)
        dice, nsd = metrics["mean"]["dice"], metrics["mean"]["nsd_1mm"]
        rows.append([config["constants"]["SEED"], np.mean(dice), *dice, np.mean(nsd), metrics["training_minutes"]])
    mean = np.mean(rows, axis=0)
    text = [[f"{row[0]:.0f}", *(f"{v:.4f}" for v in row[1:5]), f"{row[5]:.1f}"] for row in rows]
    text.append(["**mean**", f"**{mean[1]:.4f}**", *(f"{v:.4f}" for v in mean[2:5]), f"{mean[5]:.1f}"])
    return markdown_table(["seed", "mean Dice", "anterior", "posterior", "NSD at 1 mm", "minutes"], text)


def tta_table(folders):
    """The final weights of runs without and with test-time augmentation."""
    rows = []
    for folder in folders:
        metrics, config = run_row(folder)
        plain = np.mean(read_run(folder, _COMMANDS)("history")[0]["val_dice"][-1])
        tta = np.mean(metrics["mean"]["dice"])
        rows.append([config["constants"]["SEED"], f"{plain:.4f}", f"{tta:.4f}", f"{tta - plain:+.4f}"])
    return markdown_table(["seed", "mean Dice, one view", "mean Dice, test-time augmentation", "difference"], rows)


def groups(ablations, pattern):
    """The finished runs of a kind, as in ablations/3d_NUMBER_what_changed[_seedN]: {(number, what changed): [folder, ...]}."""
    found = {}
    for folder in sorted(path.parent for path in ablations.glob(f"{pattern}/metrics.json")):
        if ".previous-" not in folder.name:  # a run that was made anew
            _, number, what = re.sub(r"_seed\d+$", "", folder.name).split("_", 2)
            found.setdefault((number, what.replace("_", " ")), []).append(folder)
    return found


def steps_table(experiments):
    """One row for each experiment: {(number, what changed): folders of its seeds}."""
    rows = []
    for (number, what), folders in experiments.items():
        runs = [run_row(folder) for folder in folders]
        scores = [np.mean(metrics["mean"]["dice"]) for metrics, _ in runs]
        config, minutes = runs[0][1], np.mean([metrics["training_minutes"] for metrics, _ in runs])
        cells = [f"{config['parameters']:,}", config["constants"]["EPOCHS"], f"{np.mean(scores):.4f}"]
        rows.append([number, what, *cells, ", ".join(f"{s:.4f}" for s in scores), f"{minutes:.1f}"])
    return markdown_table(["", "recipe", "parameters", "epochs", "mean Dice", "each seed", "minutes"], rows)


def steps_3d_table(default, ablations):
    """From the original 3D recipe to the default."""
    last = {
        ("8", "two poolings, a smaller patch: **the default**"): seeds(default, ablations),
        ("", "for comparison: step 5 for 24 epochs"): [ablations / "adamw_24_epochs"],
    }
    return steps_table(groups(ablations, "3d_*") | last)


def original_3d(folder, default, references):
    """Where the original 3D recipe begins to overfit, and its best epoch beside the one that its authors recorded."""
    history, metrics, config = read_run(folder, _COMMANDS)("history", "metrics", "config")
    (recorded,) = (r["dice"] for r in references["others"] if r["who"].startswith("the original design"))
    train_loss, loss, best = history["train_loss"], history["val_loss"], metrics["best"]
    low, one_view = np.argmin(loss), history["val_dice"][best["epoch"] - 1]
    times = config["parameters"] / default["parameters"]
    return (
        f"Row 0 is the original recipe in full: {times:.0f} times the default's parameters, the INR head, flips in training and at test time. Its "
        f"validation loss is lowest in epoch {low + 1}, {loss[low]:.4f}, and {loss[-1]:.4f} in the last, while the training loss falls from "
        f"{train_loss[low]:.4f} to {train_loss[-1]:.4f}. Its best epoch, {best['epoch']}, chosen on the scored cases, has {mean_dice(one_view)} in "
        f"one view and {mean_dice(best['mean']['dice'])} with test-time augmentation; the original's own history, so chosen, {recorded}."
    )


def without_table(default, ablations):
    """The default, and the default with one thing taken back."""
    return steps_table({("0", "**the default**"): seeds(default, ablations)} | groups(ablations, "default_*"))


def together_table(folder, control):
    """Both runs and their average; and, for comparison, the average of several seeds of the first."""
    metrics = load_json(folder / "metrics.json", "python -m tools.ensemble")
    parts = [*metrics["members"].items(), ("**3D and 2D together**", metrics["mean"])]
    several = load_json(control / "metrics.json", _COMMANDS)
    parts.append((f"for comparison: {len(several['members'])} seeds of the 3D run together", several["mean"]))
    rows = [
        [name, mean_dice(part["dice"]), *(f"{d:.4f}" for d in part["dice"]), mean_dice(part["nsd_1mm"])]
        for name, part in parts
    ]
    return markdown_table(["run", "mean Dice", "anterior", "posterior", "NSD at 1 mm"], rows)


def cross_validation_table(folder, references):
    result = load_json(folder / "cross_validation.json", "python cross_validate.py")
    parts = [(f"{name[:2].upper()} alone, seed {name[3:]}", part) for name, part in result["members"].items()]
    if len(parts) > 1:
        parts.append((f"**all {len(parts)} together**" if len(parts) > 2 else "**3D and 2D together**", result))
    rows = []
    for name, part in parts:
        (low, high), other = part["interval"]["interval"], part.get("difference")
        dice = part["mean"]["dice"]
        rows.append(
            [
                name,
                f"**{part['interval']['mean']:.4f}** ({low:.4f} to {high:.4f})",
                f"{dice[0]:.4f} / {dice[1]:.4f}",
                ", ".join(mean_dice(fold["mean"]["dice"]) for fold in part["folds"]),
                "{:+.4f} ({:+.4f} to {:+.4f})".format(other["mean"], *other["interval"]) if other else "–",
                f"{np.mean(part['training_minutes']):.1f}",
            ]
        )
    peer = references["cross_validation"]
    rows.append([peer["who"], f"{peer['mean_dice']:.4f}", peer["labels"], peer["folds"], "–", peer["cost"]])
    cases = len(result["cases"])
    header = ["who", f"mean Dice, {cases} cases (95 % interval)", "anterior / posterior", "folds 0 to 4"]
    text = markdown_table([*header, "difference from nnU-Net, case by case", "minutes of training a fold"], rows)
    unseen = load_json(folder / "config.json", "python train_3d.py")["data"]["train_cases"]
    theirs = cross_validate.read_peer(cross_validate.PEER)
    scores = {name: part["dice"] for name, part in result["members"].items()}
    scores["together"] = {case: values["dice"] for case, values in result["cases"].items()}
    lines = []
    for name, dice in scores.items():
        ours = [np.mean(dice[case]) for case in unseen]
        difference = cross_validate.bootstrap([d - theirs[case] for d, case in zip(ours, unseen)])
        lines.append(f"{name.replace('d-', 'D, seed ')}: {np.mean(ours):.4f} ({interval(difference)})")
    return (
        f"{text}\n\nThe recipe was chosen by its score on the other {cases - len(unseen)} of these cases. On the {len(unseen)} cases that no "
        f"choice was scored on, nnU-Net has {np.mean([theirs[c] for c in unseen]):.4f}, and ours, with the difference from it: {'; '.join(lines)}. "
        f"On all cases, both together against 3D alone: {interval(result['gain'])}."
    )


def errors(folder):
    """What the outline and what the border between the parts costs."""
    mean = load_json(folder / "cross_validation.json", "python cross_validate.py")["mean"]
    return (
        f"In the cross-validation of both together the two parts have a mean Dice of {mean_dice(mean['dice'])}, and the hippocampus as one label "
        f"{mean_dice(mean['dice_whole'])}. Were the border between the parts right in all that truth and prediction share, their mean Dice would be "
        f"{mean_dice(mean['dice_true_border'])}: the rest is the outline."
    )


def peers_table(benchmark):
    slowest = benchmark["peers"]["nnU-Net's PlainConvUNet, 32-64-128-256 channels"]["seconds_per_training_volume"]
    rows = []
    for name, peer in benchmark["peers"].items():
        most = benchmark["products"][peer["precision"]]
        rows.append(
            [
                name,
                f"{peer['parameters']:,}",
                f"{peer['precision']}, {peer['batch']}",
                f"{peer['seconds_per_training_volume']:.3f}",
                f"{slowest / peer['seconds_per_training_volume']:.1f}",
                f"{peer['seconds_per_predicted_volume']:.3f}",
                f"{peer['peak_memory_mib']:,}",
                f"{peer['training_gflops_per_second']} of {most} ({100 * peer['training_gflops_per_second'] / most:.0f} %)",
            ]
        )
    header = ["network", "parameters", "precision, batch", "s a training volume", "times nnU-Net's training speed"]
    last = ["s a predicted volume", "peak memory in MiB", "GFLOP/s in training, of a matrix product's"]
    return markdown_table([*header, *last], rows)


def metrics_time(metrics):
    return (
        f"NSD at two tolerances and HD95 of both labels take {metrics['ours_milliseconds']} ms a case, with the `surface-distance` "
        f"package {metrics['surface_distance_milliseconds']} ms: {metrics['ratio']} times as long."
    )


def comparison_table(folds, references, runs):
    dice, same = np.array([metrics["mean"]["dice"] for metrics, _ in runs]), references["same_52_cases"]
    rows = [
        [
            "**this repository**, 3D",
            f"{len(runs[0][0]['cases'])} held-out cases, final weights, mean of {len(runs)} seeds",
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


def slices_table(metrics):
    rows = []
    for key, decided in (("slices", "the volume's own voxels"), ("slices_by_pixel", "the slice's pixels")):
        ours, theirs = "truth or prediction has it", "always; 1 if both lack it (the original's)"
        for text, end in ((ours, ""), (theirs, "_original")):
            dice, nsd = (metrics[key][f"{name}{end}"] for name in ("dice", "nsd_1mm"))
            rows.append([decided, text, *(f"{v:.4f}" for v in (*dice, np.mean(dice), *nsd, np.mean(nsd)))])
    scores = ["Dice ant.", "Dice post.", "mean Dice", "NSD ant.", "NSD post.", "mean NSD"]
    return markdown_table(["predicted for", "a slice counts for a label if", *scores], rows)


def steps_2d_table(default, ablations):
    """Slices (by the original's definition and by ours) and fused volumes after each change of the 2D recipe."""
    original, stored = ablations / "2d_original", ablations / "2d_stored_augmentation"
    epochs = run_row(original)[1]["constants"]["EPOCHS"]
    rows = []
    for text, folder, key in (
        (f"the original recipe, but {epochs} epochs instead of 100", original, "slices_by_pixel"),
        ("a smaller network, larger rate, average of the weights, cross-entropy", stored, "slices_by_pixel"),
        ("+ augmentation anew in each epoch, smoothing of 32 pixels", default, "slices_by_pixel"),
        ("+ decided for the volume's own voxels", default, "slices"),
    ):
        metrics = load_json(folder / "metrics.json", _COMMANDS)
        cells = [
            mean_dice(part) for part in (metrics[key]["dice"], metrics[key]["dice_original"], metrics["mean"]["dice"])
        ]
        rows.append([text, *cells, f"{metrics['training_minutes']:.1f}"])
    header = ["recipe", "slices, Dice", "slices, the original's definition", "fused volumes, Dice", "minutes"]
    return markdown_table(header, rows)


def epochs_2d_table(history, metrics):
    n, best = len(history["seconds"]), metrics["best"]["epoch"]
    rows = []
    twenty, fifty = ("20 or the nearest", 20), ("50 or the nearest", min(50, n))
    middle = [twenty, fifty] if n > 20 else [("20, 50 or the nearest", n)]
    names = ("train_dice", "val_dice", "train_nsd", "val_nsd")
    for text, epoch in (("first", 1), *middle, ("best", best)):
        cells = [f"{np.mean(history[name][epoch - 1]):.4f}" for name in names]
        rows.append([f"{text} ({epoch})", *cells, f"{sum(history['seconds'][:epoch]) / 60:.1f}"])
    return markdown_table(["epoch", "train Dice", "val Dice", "train NSD", "val NSD", "minutes"], rows)


def models_table(models):
    rows = []
    for shape, key in (("128 x 128", "2d"), ("40 x 56 x 40", "3d")):
        for name, parameters, multiply_adds, milliseconds in models[key]:
            rows.append([name, f"{parameters:,}", shape, f"{multiply_adds / 1e9:.2f} G", milliseconds])
    return markdown_table(["model", "parameters", "input", "multiply-adds", "ms on two CPU cores"], rows)


def slices_time(slices):
    return (
        f"`data_aug.py` takes {slices['data_aug_seconds']:.0f} s for the {slices['volumes']} volumes on two cores; a plain loop of "
        f"scikit-image's `resize` and `warp` in one process takes {slices['plain_loop_seconds']:.0f} s, {slices['ratio']} times as long."
    )


def both_table(runs, benchmark):
    rows = [["", *(name for name, *_ in runs)]]

    def row(text, cell):
        rows.append([text, *(cell(*run[1:]) for run in runs)])

    row(
        "mean Dice (anterior / posterior)",
        lambda f, m, c: f"{mean_dice(m['mean']['dice'])} ({' / '.join(f'{d:.4f}' for d in m['mean']['dice'])})",
    )
    for text, name, digits in (
        ("NSD at 1 mm", "nsd_1mm", 4),
        ("NSD at 2 mm", "nsd_2mm", 4),
        ("HD95 in mm", "hd95_mm", 2),
    ):
        row(f"mean {text}", lambda f, m, c, name=name, digits=digits: f"{np.mean(m['mean'][name]):.{digits}f}")
    row("model", lambda f, m, c: c["model"]["name"])
    row("parameters", lambda f, m, c: f"{c['parameters']:,}")
    row("minutes of training, validation included", lambda f, m, c: f"{m['training_minutes']:.1f}")
    row(
        "seconds to predict a volume",
        lambda f, m, c: f"{benchmark[f'{f}/last.pth']['predict']['seconds_per_volume']:.2f}",
    )
    row("peak memory, prediction", lambda f, m, c: f"{benchmark[f'{f}/last.pth']['predict']['peak_memory_mib']:,} MiB")
    row(
        "peak memory, forward and backward pass",
        lambda f, m, c: f"{benchmark[f'{f}/last.pth']['train']['peak_memory_mib']:,} MiB",
    )
    return markdown_table(rows[0], rows[1:])


def search_results(folder, made_by):
    found = load_json(Path(folder) / search.RESULTS, made_by)
    require(search.group(found), f"{folder}: no point of this search is done yet; go on with: {made_by}")
    return f"{search.table(found)}\n\n{search.verdict(found)}"


def original_table(metrics, config, path_2d):
    cases = len(config["data"]["train_cases"]) + len(config["data"]["val_cases"])
    slices = "per slice: not comparable with a volume's Dice"
    if path_2d.is_file():
        metrics_2d = load_json(path_2d, "python train2d.py")
        slices = (
            f"{100 * np.mean(metrics_2d['slices']['dice_original']):.1f} % per slice by the original's definition, "
            f"{100 * np.mean(metrics_2d['mean']['dice']):.1f} % for whole volumes"
        )
    dice, nsd_2mm = np.mean(metrics["mean"]["dice"]), np.mean(metrics["mean"]["nsd_2mm"])
    return markdown_table(
        ["the original documents", "measured or counted here", "likely cause of the difference"],
        [
            [
                "98.9 % Dice in 3D",
                f"{100 * dice:.1f} % Dice; {100 * nsd_2mm:.1f} % NSD at 2 mm",
                "the original's recorded history holds 87.1 % Dice and 98.9 % mean NSD at 2 voxels: the NSD, read as Dice",
            ],
            ["82.9 % Dice in 2D", slices, "each slice scored alone: not comparable with a volume's Dice"],
            ["+16 % from 2D to 3D", "not one measure", "98.9 % minus 82.9 %: an NSD of volumes minus a Dice of slices"],
            [
                "about 12,000 training slices",
                f"{cases} volumes x 3 planes x 15 slices = {cases * 45:,}; {len(config['data']['train_cases']) * 45:,} of them for training",
                "all slices counted, those of validation cases included",
            ],
            [
                "394 volumes",
                f"{cases} labelled volumes (the archive has 130 more without labels)",
                "the Decathlon's paper counts 394; its archive holds 390",
            ],
        ],
    )


if __name__ == "__main__":
    run_script(main)

"""What grid_search.py and grid_search_3d.py share: the points of a grid, results that survive a break, table and figure.

A search is a folder: search.json (its settings), points/<KEY>.json (the result of each point), runs/<KEY>/ (each point's
own run folder), and small_models_results.json and small_grid_search_analysis.png (all points together).
"""

import difflib
import itertools
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from hippo.errors import UserError, fail, require
from hippo.files import fresh_folder, load_json, save_json
from hippo.options import configure, constants
from hippo.pictures import plots
from hippo.processes import refuse_several_processes
from hippo.scoring.tables import markdown_table

RESULTS, FIGURE = "small_models_results.json", "small_grid_search_analysis.png"


GRID = ("base_channels", "unet_depth", "learning_rate", "weight_decay", "use_inr", "inr_hidden_dim", "deep_supervision")


_NOT_PART_OF_A_SEARCH = ("out_dir", "only", "collect", "device", "num_workers")


def search(cfg, train, depth_name):
    """Runs the points of a grid that are not done yet, each by train.run; returns whether all of them went well.

    cfg: the grid script's configuration: lists under the names of GRID but for deep_supervision (True: one more point
    without INR), seeds, only, collect, out_dir; all else is handed to the training script where it has that constant.
    depth_name: the training script's name for the number of poolings.
    """
    refuse_several_processes("spread the points with --only=KEY")
    points = grid_points(cfg)
    if cfg.only == "list":
        print(*points, sep="\n")
        return True
    if cfg.only and cfg.only not in points:
        near = difflib.get_close_matches(cfg.only, points, n=1, cutoff=0)
        raise UserError(f"--only={cfg.only}: no such point; did you mean {near[0]}? --only=list prints them all")
    runs = {key: training_config(cfg, train, depth_name, key, point) for key, point in points.items()}
    folder = Path(cfg.out_dir)
    if not cfg.collect:
        refused = [error for run in runs.values() if (error := refusal(train, run))]
        if len(refused) == len(runs):  # a mistake that all points share: nothing is begun
            raise refused[0]
        open_folder(folder, settings(cfg), points, bool(cfg.only))
        done = results(folder)
        for number, key in enumerate([cfg.only] if cfg.only else points, 1):
            if key in done and "error" not in done[key]:
                print(f"{key} is done already")
                continue
            print(f"point {number} of {1 if cfg.only else len(points)}: {key}", flush=True)
            entry = run_point(train, runs[key], points[key], cfg.epochs)
            save_json(folder / "points" / f"{key}.json", entry)
            if not cfg.only:
                save_json(folder / RESULTS, results(folder))
        if cfg.only:
            return report_errors({cfg.only: results(folder)[cfg.only]})
    found = results(folder)
    require(found, f"{folder}: no results to collect; make them with --only=KEY, or without --collect for all of them")
    found = {key: found[key] for key in [*(k for k in points if k in found), *(k for k in found if k not in points)]}
    save_json(folder / RESULTS, found)
    good = [entry for entry in found.values() if "error" not in entry]
    if good:
        title = f"{len(good)} runs: {plots.source(good[0]['synthetic'])}"
        plots.search_analysis(list(group(found).values()), folder / FIGURE, title)
        print(table(found), verdict(found), sep="\n\n")
    missing = [key for key in points if key not in found]
    if missing:
        print(f"{len(missing)} of {len(points)} points are not there yet: {', '.join(missing)}")
    return report_errors(found)


def grid_points(cfg):
    """{key: {"seed" and each name of GRID: value}}; inr_hidden_dim is None without INR, so that no point comes twice."""
    variants = [(False, None, False)] * (False in cfg.use_inr)
    variants += [(True, width, False) for width in cfg.inr_hidden_dim if True in cfg.use_inr]
    variants += [(False, None, True)] * cfg.deep_supervision
    grid = itertools.product(
        cfg.seeds, cfg.base_channels, cfg.unet_depth, cfg.learning_rate, cfg.weight_decay, variants
    )
    points = {}
    for seed, channels, depth, rate, decay, variant in grid:
        values = (channels, depth, rate, decay, *variant)
        point = {"seed": seed, **dict(zip(GRID, values))}
        points[point_key(point)] = point
    require(points, "the grid is empty; expected at least one value in each list")
    return points


def point_key(point):
    """As nnUNet_BC32_D4_INR64_LR1e-04_WD1e-05, with _DS for deep supervision and _S1 for a seed other than 0."""

    def number(value):
        return f"{value:.0e}" if float(f"{value:.0e}") == value else f"{value:g}"

    return (
        f"nnUNet_BC{point['base_channels']}_D{point['unet_depth']}_"
        f"{'INR' + str(point['inr_hidden_dim']) if point['use_inr'] else 'NoINR'}_"
        f"LR{number(point['learning_rate'])}_WD{number(point['weight_decay'])}"
        f"{'_DS' * point['deep_supervision']}{'_S' + str(point['seed']) if point['seed'] else ''}"
    )


def training_config(cfg, train, depth_name, key, point):
    """The training script's configuration for one point."""
    known = {name.lower() for name in constants(vars(train))}
    values = {name: value for name, value in vars(cfg).items() if name in known and name not in GRID}
    values |= {depth_name if name == "unet_depth" else name: v for name, v in point.items() if v is not None}
    values |= {"out_dir": str(Path(cfg.out_dir) / "runs" / key), "resume": True}
    return configure(vars(train), [], **values)


def refusal(train, run):
    """The UserError with which the training script refuses a configuration, or None."""
    try:
        train.check(run)
    except UserError as error:
        return error


def settings(cfg):
    return {name.upper(): value for name, value in sorted(vars(cfg).items()) if name not in _NOT_PART_OF_A_SEARCH}


def open_folder(folder, wanted, points, single):
    """Makes the folder of a search, or leaves that of an unfinished one with the same settings. A finished one, and one
    with other settings, is kept aside; but not for a single point, beside which others may be running."""
    path = folder / "search.json"
    begun = load_json(path, "a new search in another --out_dir") if path.is_file() else None
    if begun == wanted:
        done = results(folder)
        finished = (folder / FIGURE).exists() and all(key in done and "error" not in done[key] for key in points)
        if single or not finished:
            return
    if not single:
        fresh_folder(folder)
        save_json(path, wanted)
        return
    if not path.is_file():
        others = [p for p in folder.glob("*") if not p.name.startswith(".")]  # another process may be writing the file
        require(not others or path.is_file(), f"{folder} holds something else than a search; choose another --out_dir")
        save_json(path, wanted)
    other = f"{folder} holds a search with other settings; choose another --out_dir for --only"
    require(load_json(path, "a new search in another --out_dir") == wanted, other)


def results(folder):
    """{key: entry} of a search's folder: of small_models_results.json and, newer, of points/*.json."""
    again = "a new search in another --out_dir"
    found = load_json(folder / RESULTS, again) if (folder / RESULTS).is_file() else {}
    return found | {path.stem: load_json(path, again) for path in sorted(folder.glob("points/[!.]*.json"))}


def run_point(train, run, point, epochs):
    """The entry of one point: its config and results, or its config and the error that it ended with."""
    entry = {"config": {**point, "epochs": epochs, "max_cases": run.max_cases}, "seed": point["seed"]}
    try:
        metrics = train.run(run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on with the search, where it stopped") from None
    except Exception as error:  # whatever it is, the other points shall run
        print(f"failed: {type(error).__name__}: {error}", flush=True)
        return {**entry, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    folder = Path(run.out_dir)
    history, config = (load_json(folder / f"{name}.json", "the same command") for name in ("history", "config"))
    curves = {name: np.mean(history[name], axis=1) for name in ("train_dice", "val_dice")}
    best = int(np.argmax(curves["val_dice"]))
    return {
        **entry,
        "synthetic": metrics["synthetic"],
        "parameters": config["parameters"],
        "training_time": sum(history["seconds"]),
        "final_train_dice": curves["train_dice"][-1],
        "final_val_dice": curves["val_dice"][-1],
        "best_val_dice": curves["val_dice"][best],
        "best_epoch": best + 1,
        "dice": metrics["mean"]["dice"],
        "dice_std": metrics["std"]["dice"],
        "nsd_1mm": metrics["mean"]["nsd_1mm"],
        **({"slices": metrics["slices"]} if "slices" in metrics else {}),
        "case_dice": {case: values["dice"] for case, values in metrics["cases"].items()},
        "history": curves,
    }


def report_errors(found):
    """Prints one line for each failed point; returns whether there is none."""
    bad = {key: entry["error"] for key, entry in found.items() if "error" in entry}
    for key, error in bad.items():
        fail(f"{key}: {error}; the same command tries it again")
    return not bad


def group(found):
    """Configurations, each with all its seeds: {values of GRID: {"label", "runs": [entry, ...]}}, without failed points."""
    good = [entry for entry in found.values() if "error" not in entry]
    varied = [name for name in GRID[:4] if len({entry["config"][name] for entry in good}) > 1]
    groups = {}
    for entry in good:
        config = entry["config"]
        label = f"INR-{config['inr_hidden_dim']}" if config["use_inr"] else "No INR"
        label += ", deep supervision" * config["deep_supervision"]
        label += "".join(f", {name.replace('_', ' ')} {config[name]:g}" for name in varied)
        groups.setdefault(tuple(config[name] for name in GRID), {"label": label, "runs": []})["runs"].append(entry)
    return groups


def without_inr(groups, key):
    """The group that differs from that of `key` only in that it has neither INR nor deep supervision, or None."""
    plain = (*key[:4], False, None, False)
    return None if plain == key else groups.get(plain)


def difference(runs, others):
    """Difference of two configurations' mean Dice, paired by case, and its standard error over the cases."""
    one, other = (np.mean([list(run["case_dice"].values()) for run in part], axis=(0, 2)) for part in (runs, others))
    delta = one - other
    return delta.mean(), delta.std(ddof=1) / len(delta) ** 0.5 if len(delta) > 1 else float("nan")


def table(found):
    """A Markdown table of a search: volumes, final weights, mean ± standard deviation over cases."""
    groups = group(found)
    header = ["configuration", "parameters", "Dice anterior", "Dice posterior", "mean Dice, each seed", "NSD at 1 mm"]
    header += ["minutes a run", "difference from No INR ± standard error over cases"]
    rows = []
    for key, part in groups.items():
        runs, plain = part["runs"], without_inr(groups, key)
        dice, spread = (np.mean([run[name] for run in runs], axis=0) for name in ("dice", "dice_std"))
        rows.append(
            [
                part["label"],
                f"{runs[0]['parameters']:,}",
                *(f"{d:.4f} ± {s:.3f}" for d, s in zip(dice, spread)),
                ", ".join(f"{np.mean(run['dice']):.4f}" for run in runs),
                f"{np.mean([run['nsd_1mm'] for run in runs]):.4f}",
                f"{np.mean([run['training_time'] for run in runs]) / 60:.1f}",
                "{:+.4f} ± {:.4f}".format(*difference(runs, plain["runs"])) if plain else "–",
            ]
        )
    return markdown_table(header, rows)


def verdict(found):
    """One sentence on whether the INR head helps, with the spread that backs it.

    A difference counts if it is larger than what seeds differ by, and than half the width of the cases' 95 % intervals
    (Student's t, with Bonferroni's correction for the number of INR heads).
    """
    groups, parts, words = group(found), [], []
    means = [[np.mean(run["dice"]) for run in part["runs"]] for part in groups.values()]
    spread, seeds = max(np.ptp(values) for values in means), max(len(values) for values in means)
    cases = len(next(iter(groups.values()))["runs"][0]["case_dice"])
    heads = {key: plain for key in groups if (plain := without_inr(groups, key)) and key[GRID.index("use_inr")]}
    for key, plain in heads.items():
        part = groups[key]
        mean, error = difference(part["runs"], plain["runs"])
        parts.append(f"{part['label']} changes it by {mean:+.4f} ± {error:.4f}")
        if abs(mean) > max(student_t.ppf(1 - 0.025 / len(heads), cases - 1) * error, spread):
            effect = ("helps" if mean > 0 else "harms") if seeds > 1 else f"scores {'more' if mean > 0 else 'less'}"
            words.append(f"{part['label']} {effect}")
    if not parts:
        return "There is no pair of points with and without INR to compare yet."
    noise = f"; seeds of one configuration differ by up to {spread:.4f}" if seeds > 1 else "; one seed only"
    result = ", ".join(words) or "no INR head makes a measurable difference"
    return (
        f"Against the same network without INR, in mean Dice: {', '.join(parts)} (± standard error over {cases} cases, "
        f"paired{noise}): **{result}**."
    )

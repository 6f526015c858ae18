"""Shared code of grid_search.py and grid_search_3d.py: the points of a grid, results that survive interruptions, table
and figure.

A search is a folder: search.json (its settings), points/<KEY>.json (the result of each point), runs/<KEY>/ (the run
folder of each point), and small_models_results.json and small_grid_search_analysis.png (all points together).
"""

import difflib
import itertools
from pathlib import Path

from hippo.errors import UserError, fail, require
from hippo.files import fresh_folder, load_json, save_json
from hippo.options import configure, constants
from hippo.pictures import plots
from hippo.processes import refuse_several_processes
from hippo.training.grid import CUSTOM, GRID, PLAIN, search_conclusion, search_groups, search_table

import numpy as np

RESULTS, FIGURE = "small_models_results.json", "small_grid_search_analysis.png"
_NOT_PART_OF_A_SEARCH = ("out_dir", "only", "collect", "device", "num_workers")


def search(cfg, train):
    """Runs the unfinished points of a grid with train.run. Returns whether all of them succeeded.

    cfg: the configuration of the grid script: lists under the names of GRID (see grid_points), except deep_supervision
    (True: one more point without INR); seeds, only, collect, out_dir; everything else is passed to the training script
    if it has that constant. train: the training script (module). With cfg.only, one point is run; with cfg.collect,
    none.
    """
    refuse_several_processes("spread the points with --only=KEY")
    require(getattr(cfg, "fold", -1) != -2, "--fold=-2 holds no case out; a search needs some to compare its points by")
    points = grid_points(cfg)
    if cfg.only == "list":
        print(*points, sep="\n")
        return True
    if cfg.only and cfg.only not in points:
        near = difflib.get_close_matches(cfg.only, points, n=1, cutoff=0)
        raise UserError(f"--only={cfg.only}: no such point; did you mean {near[0]}? --only=list prints them all")
    folder = Path(cfg.out_dir)
    if not cfg.collect:
        run_points(cfg, train, folder, points)
        if cfg.only:
            return report_errors({cfg.only: results(folder)[cfg.only]})
    return collect(folder, points)


def run_points(cfg, train, folder, points):
    """Runs the unfinished points and writes the result of each when it ends."""
    runs = {key: training_config(cfg, train, key, point) for key, point in points.items()}
    refused = [error for run in runs.values() if (error := refusal(train, run))]
    if len(refused) == len(runs):  # an error in all points: nothing is started
        raise refused[0]
    open_folder(folder, settings(cfg), points, bool(cfg.only))
    done, chosen = results(folder), [cfg.only] if cfg.only else list(points)
    for number, key in enumerate(chosen, 1):
        if key in done and "error" not in done[key]:
            print(f"{key} is done already")
            continue
        print(f"point {number} of {len(chosen)}: {key}", flush=True)
        save_json(folder / "points" / f"{key}.json", run_point(train, runs[key], points[key], cfg.epochs))
        if not cfg.only:
            save_json(folder / RESULTS, results(folder))


def collect(folder, points):
    """Collects the results of all points into small_models_results.json, the figure and the table. Returns whether
    none failed."""
    found = results(folder)
    require(found, f"{folder}: no results to collect; make them with --only=KEY, or without --collect for all of them")
    found = {key: found[key] for key in [*(k for k in points if k in found), *(k for k in found if k not in points)]}
    save_json(folder / RESULTS, found)
    good = [entry for entry in found.values() if "error" not in entry]
    if good:
        title = f"{len(good)} runs: {plots.source(good[0]['synthetic'])}"
        plots.search_analysis(list(search_groups(found).values()), folder / FIGURE, title)
        print(search_table(found), search_conclusion(found), sep="\n\n")
    missing = [key for key in points if key not in found]
    if missing:
        print(f"{len(missing)} of {len(points)} points are not there yet: {', '.join(missing)}")
    return report_errors(found)


def grid_points(cfg):
    """Returns {key: {"seed" and each name of GRID: value}}. inr_hidden_dim is None without INR, so that no point
    occurs twice.

    Each attention is one more point, without INR; so is each model other than that of the grid, whose model is None.
    Such a model has its own sizes and learning rates.
    """
    variants = [PLAIN] * (False in cfg.use_inr)
    variants += [(True, width, False, "none", None) for width in cfg.inr_hidden_dim if True in cfg.use_inr]
    variants += [(False, None, True, "none", None)] * cfg.deep_supervision
    variants += [(False, None, False, kind, None) for kind in cfg.attention if kind != "none"]
    sizes = itertools.product(cfg.base_channels, cfg.unet_depth, cfg.learning_rate, cfg.weight_decay)
    values = [(*size, *variant) for size in sizes for variant in variants if {*cfg.model} & {*CUSTOM}]
    values += [(None, None, None, None, *PLAIN[:-1], model) for model in cfg.model if model not in CUSTOM]
    points = {}
    for seed, value in itertools.product(cfg.seeds, values):
        point = {"seed": seed, **dict(zip(GRID, value))}
        points[point_key(point)] = point
    require(points, "the grid is empty; expected at least one value in each list")
    return points


def point_key(point):
    """Returns a key such as nnUNet_BC32_D4_INR64_LR1e-04_WD1e-05, with _DS for deep supervision, _SE or _CBAM for
    attention, and _S1 for a seed other than 0. Other models have nnUNet_NoINR_ and their name."""

    def number(value):
        return f"{value:.0e}" if float(f"{value:.0e}") == value else f"{value:g}"

    seed = f"_S{point['seed']}" if point["seed"] else ""
    if point["model"]:
        return f"nnUNet_NoINR_{point['model']}{seed}"
    attention = "" if point["attention"] == "none" else f"_{point['attention'].upper()}"
    return (
        f"nnUNet_BC{point['base_channels']}_D{point['unet_depth']}_"
        f"{'INR' + str(point['inr_hidden_dim']) if point['use_inr'] else 'NoINR'}_"
        f"LR{number(point['learning_rate'])}_WD{number(point['weight_decay'])}"
        f"{'_DS' * point['deep_supervision']}{attention}{seed}"
    )


def training_config(cfg, train, key, point):
    """Returns the configuration of the training script for one point."""
    known = {name.lower() for name in constants(vars(train))}
    values = {name: value for name, value in vars(cfg).items() if name in known and name not in GRID}
    values |= {name: value for name, value in point.items() if value is not None}
    recipe = (point["model"] or "").lower()  # its own learning rates, if there is a recipe
    values |= {"recipe": recipe} if recipe in getattr(train, "RECIPES", {}) else {}
    values |= {} if point["model"] else {"model": next(name for name in cfg.model if name in CUSTOM)}
    values |= {"out_dir": str(Path(cfg.out_dir) / "runs" / key), "resume": True}
    return configure(vars(train), [], **values)


def refusal(train, run):
    """Returns the UserError with which the training script rejects a configuration, or None."""
    try:
        train.check(run)
    except UserError as error:
        return error


def settings(cfg):
    """Returns the constants that define a search, for search.json."""
    return {name.upper(): value for name, value in sorted(vars(cfg).items()) if name not in _NOT_PART_OF_A_SEARCH}


def open_folder(folder, wanted, points, single):
    """Creates the folder of a search, or keeps that of an unfinished search with the same settings.

    A folder with a finished search, or one with other settings, is moved aside. For a single point it is refused,
    because other points may be running in it.
    """
    path = folder / "search.json"
    earlier = _settings_of(path, wanted) if path.is_file() else None
    if earlier == wanted:
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
    require(_settings_of(path, wanted) == wanted, other)


def _settings_of(path, wanted):
    """Returns the content of a search.json. Searches from before attention and model were axes get the values they had
    then."""
    earlier = load_json(path, "a new search in another --out_dir")
    custom = [name for name in wanted["MODEL"] if name in CUSTOM] or list(CUSTOM[:1])
    earlier = {"ATTENTION": ["none"], "MODEL": custom, **earlier}
    return earlier | ({"MODEL": [earlier["MODEL"]]} if isinstance(earlier["MODEL"], str) else {})


def results(folder):
    """Returns {key: entry} of the folder of a search: from small_models_results.json, updated by the newer
    points/*.json."""
    again = "a new search in another --out_dir"
    found = load_json(folder / RESULTS, again) if (folder / RESULTS).is_file() else {}
    return found | {path.stem: load_json(path, again) for path in sorted(folder.glob("points/[!.]*.json"))}


def run_point(train, run, point, epochs):
    """Runs one point. Returns its entry: its config and results, or its config and the error."""
    entry = {"config": {**point, "epochs": epochs, "max_cases": run.max_cases}, "seed": point["seed"]}
    try:
        metrics = train.run(run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on with the search, where it stopped") from None
    except Exception as error:  # whatever the error, the other points must run
        print(f"failed: {type(error).__name__}: {error}", flush=True)
        return {**entry, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    folder = Path(run.out_dir)
    history, config = (load_json(folder / f"{name}.json", "the same command") for name in ("history", "config"))
    curves = {name: np.mean(np.array(history[name], float), axis=1) for name in ("train_dice", "val_dice")}
    best = int(np.nanargmax(curves["val_dice"]))  # epochs without validation have none
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
    """Prints one line for each failed point. Returns whether there is none."""
    bad = {key: entry["error"] for key, entry in found.items() if "error" in entry}
    for key, error in bad.items():
        fail(f"{key}: {error}; the same command tries it again")
    return not bad

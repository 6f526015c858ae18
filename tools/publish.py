"""Copies what the pages show from the scripts' own folders into results/ (JSON) and docs/pictures/.

    python -m tools.publish        copies what is there, says what is not; then: python -m tools.report

A run is copied with its pictures, and only when it is finished, of real data and of all cases. A run of a script's
default folder must also be of its default recipe. The pictures of viz.py, of viz_aug.py and of the network are drawn
anew, from the real data. Files that are published already are replaced: git keeps them.
"""

import shutil
import tempfile
from pathlib import Path

import cross_validate
import generate_architecture_diagram
import grid_search
import grid_search_3d
import train2d
import train_3d
import viz
import viz_aug
from hippo.data.cases import is_synthetic, list_cases
from hippo.data.slices import read_index
from hippo.errors import UserError, require
from hippo.files import atomic, load_json
from hippo.options import configure, run_script
from hippo.training.run_folder import NOT_PART_OF_A_RUN
from hippo.training.search import FIGURE, RESULTS
from tools import benchmark, ensemble

SHORT_2D = "checkpoints-2d-64"  # folder of the short 2D run, see docs/RESULTS.md
ABLATIONS = "ablations"  # folder of further runs and searches
RESULTS_DIR = "results"  # where the JSON files go
PICTURES_DIR = "docs/pictures"  # where the pictures go

_RUN = ("config.json", "history.json", "metrics.json")
_SEARCH = ("search.json", RESULTS)


def main():
    run(configure(globals()))


def run(cfg):
    """Copies everything that can be published; returns the list of the files written."""
    written = []
    for source, target, names, pictures, is_default in parts(cfg):
        reason = why_not(source, names, is_default)
        if reason:
            print(f"{source} is not published: {reason}")
            continue
        files = {source / name: Path(cfg.results_dir) / target / name for name in names}
        files |= {source / name: Path(cfg.pictures_dir) / picture for name, picture in pictures.items()}
        written += copy(files)
    written += copy({Path(benchmark.OUT): Path(cfg.results_dir) / "benchmark.json"})
    written += draw(Path(cfg.pictures_dir))
    print(f"{len(written)} files published; next: python -m tools.report")
    return written


def parts(cfg):
    """(folder, its name in results/, JSON files, {picture: published name}, whether it has to be the default recipe)."""
    plots_3d = {"dice_train_vs_val": "dice", "loss_train_vs_val": "loss", "val_nsd": "nsd"}
    plots_3d |= {name: name for name in ("per_case_dice", "predictions")}
    pictures_3d = {f"plots/{name}.png": f"3d_{published}.png" for name, published in plots_3d.items()}
    folds = {f"plots/cross_validation_{n}.png": f"cross_validation_{n}.png" for n in ("peer", "volumes", "worst")}
    result = [
        (Path(train_3d.OUT_DIR), "3d", _RUN, pictures_3d, True),
        (Path(train2d.OUT_DIR), "2d", _RUN, pictures_2d("2d"), True),
        (Path(cfg.short_2d), "2d_short", _RUN, {}, False),
        (Path(ensemble.OUT_DIR), "ensemble", ("metrics.json",), {}, False),
        (Path(cross_validate.OUT_DIR), "", ("cross_validation.json",), folds, False),
        (Path(grid_search_3d.OUT_DIR), "search_3d", _SEARCH, {FIGURE: "search_3d.png"}, False),
        (Path(grid_search.OUT_DIR), "search_2d", _SEARCH, {FIGURE: "search_2d.png"}, False),
    ]
    drawn = {"2d_original": pictures_2d("2d_original"), "grid_3d_inr_rate": {FIGURE: "search_3d_inr_rate.png"}}
    for folder in sorted(Path(cfg.ablations).glob("*")):
        if folder.is_dir() and ".previous-" not in folder.name:
            names = _SEARCH if (folder / "search.json").exists() else ("metrics.json",)
            names = _RUN if (folder / "config.json").exists() else names
            result.append((folder, f"ablations/{folder.name}", names, drawn.get(folder.name, {}), False))
    return result


def pictures_2d(name):
    return {f"plots/{plot}.png": f"{name}_{plot}.png" for plot in ("predictions", "training_curves")}


def draw(folder):
    """Draws the pictures that are of no run; returns their paths."""
    paths = [
        generate_architecture_diagram.run(
            configure(vars(generate_architecture_diagram), [], out=f"{folder}/architecture.jpg")
        )
    ]
    try:
        require(not is_synthetic(list_cases(viz.DATA_ROOT)[1]), f"{viz.DATA_ROOT} holds SYNTHETIC phantoms")
        paths += viz.run(configure(vars(viz), [], out=f"{folder}/3d_vis.png", interactive="False"))
        _, settings = read_index(viz_aug.DATA_DIR)
        require(not settings["DATA"]["synthetic"], f"{viz_aug.DATA_DIR} holds slices of SYNTHETIC phantoms")
    except UserError as error:
        print(f"not drawn: {error}")
        return paths
    with tempfile.TemporaryDirectory() as temporary:
        drawn = viz_aug.run(configure(vars(viz_aug), [], out_dir=f"{temporary}/slices"))
        return paths + copy({path: folder / path.name.replace("viz_", "slices_") for path in drawn.glob("*.png")})


def why_not(folder, names, is_default):
    """Why a folder's results cannot be published; "" if they can."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        return f"no {missing[0]} in it"
    content = load_json(folder / names[-1], "the script that wrote it")
    entries = content.values() if RESULTS in names else [content]
    if any("error" in entry for entry in entries):
        return "a point of it failed"
    if any(entry["synthetic"] for entry in entries):
        return "it is of SYNTHETIC phantoms"
    if "config.json" in names:
        config = load_json(folder / "config.json", "the script that wrote it")
        if config["constants"]["MAX_CASES"]:
            return f"it is of {config['constants']['MAX_CASES']} cases only"
        changed = {n.lower() for n in config["overrides"]} - {*NOT_PART_OF_A_RUN, "data_root", "data_dir"}
        if is_default and changed:
            return f"it is not of the default recipe ({', '.join(sorted(changed))})"
    return ""


def copy(files):
    """Copies files {source: target} as far as they are there; returns the targets."""
    done = []
    for source, target in files.items():
        if source.is_file():
            with atomic(target) as temporary:
                shutil.copyfile(source, temporary)
            done.append(target)
    return done


if __name__ == "__main__":
    run_script(main)

"""Copies what the pages show from the scripts' own folders into results/ (JSON) and docs/pictures/.

    python -m tools.publish        copies what is there, says what is not; then: python -m tools.report

A run is copied with its pictures, and only when it is finished, of real data and of all cases. What lies in a script's
default folder must also be of its default recipe. The pictures of viz.py, of viz_aug.py and of the network are drawn
anew, from the real data; so is the brain on the page of serve.py. Files that are published already are replaced: git keeps them.
"""

import csv
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cross_validate
import generate_architecture_diagram
import grid_search
import grid_search_3d
import predict
import train2d
import train_3d
import train_locate
import viz
import viz_aug
from hippo.data.cases import is_synthetic, list_cases
from hippo.data.slices import read_index
from hippo.data.spatial import largest_component
from hippo.errors import UserError, require
from hippo.files import ROOT, atomic, load_json, save_json
from hippo.options import configure, constants, run_script
from hippo.training.run_folder import same_constants
from hippo.training.search import FIGURE, RESULTS, grid_points, settings
from tools import (
    ablations,
    benchmark,
    change,
    cohort,
    fine_tuning,
    heads,
    hippo_net,
    locating,
    pages,
    quality,
    stability,
    truth,
    uncertainty,
    web,
)

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import binary_erosion, binary_fill_holes
from skimage.transform import resize

SHORT_2D = "checkpoints-2d-64"  # folder of the short 2D run, see docs/ablations.md
ABLATIONS = "ablations"  # folder of further runs and searches
HEAD = "sub-02/anat/sub-02_T1w.nii.gz"  # in the benchmark's folder of heads, to draw
RESULTS_DIR = "results"  # where the JSON files go
PICTURES_DIR = "docs/pictures"  # where the pictures go

_RUN = ("config.json", "history.json", "metrics.json")
_SEARCH = ("search.json", RESULTS)
_SAMPLE = "sample.json"  # in RESULTS_DIR: the rows of volumes.csv of HEAD
_COLUMNS = ("scan", "side", "anterior_mm3", "posterior_mm3", "total_mm3", "etiv_mm3", "quality", "flags")  # in it
_PLACES = ("data_root", "data_dir")  # where the data were
_FILES = [benchmark.OUT, benchmark.OUT_ORDINARY_CPU, heads.OUT]
_FILES += [stability.OUT, stability.OUT_CONTRASTS, stability.OUT_SKULL, change.OUT, change.OUT_RESCANS]
_FILES += [tool.OUT for tool in (ablations, uncertainty, quality, truth, cohort, web, fine_tuning, hippo_net, locating)]
_PICTURES = [uncertainty.PICTURE, quality.PICTURE, cohort.PICTURE, web.PICTURE, fine_tuning.PICTURE]
_PICTURES += [truth.PICTURE, truth.PICTURE_RESCANS, pages.OUT]
_BRAIN_PIXELS = 500  # width of the brain on the page of serve.py
_SUMMARISED = ("part_", "uncertainty_", "ordinary_cpu")  # runs in ABLATIONS of which a file above says what counts


def main():
    run(configure(globals()))


def run(cfg):
    """Copies everything that can be published; returns the list of the files written."""
    written = []
    for part in parts(cfg):
        try:
            check(part)
        except UserError as error:
            print(f"not published: {error}")
            continue
        files = {part.folder / name: Path(cfg.results_dir) / part.target / name for name in part.names}
        files |= {part.folder / name: Path(cfg.pictures_dir) / picture for name, picture in part.pictures.items()}
        written += copy(files)
    for folder, names in ((cfg.results_dir, _FILES), (cfg.pictures_dir, _PICTURES)):
        written += copy({Path(name): Path(folder) / name for name in names if Path(name).is_file()})
    written += draw(Path(cfg.pictures_dir), Path(cfg.results_dir))
    print(f"{len(written)} files published; next: python -m tools.report")
    return written


class Part(NamedTuple):
    """What can be published together."""

    folder: Path
    target: str  # folder in results/
    names: tuple  # JSON files
    pictures: dict = {}  # {file in the folder: name in docs/pictures/}
    script: ModuleType | None = None  # the script whose recipe it has to be; None: any
    options: dict = {}  # what the recipe changes of the script's constants


def parts(cfg):
    """Every Part that may be there."""
    plots_3d = {"dice_train_vs_val": "dice", "loss_train_vs_val": "loss", "val_nsd": "nsd"}
    plots_3d |= {name: name for name in ("per_case_dice", "predictions")}
    pictures_3d = {f"plots/{name}.png": f"3d_{published}.png" for name, published in plots_3d.items()}
    folds = {f"plots/cross_validation_{n}.png": f"cross_validation_{n}.png" for n in ("peer", "volumes", "worst")}
    robust, seeds = (cross_validate.RECIPES[recipe]["out_dir"] for recipe in ("heads", "ensemble"))
    result = [
        Part(Path(train_3d.OUT_DIR), "3d", _RUN, pictures_3d, train_3d),
        Part(Path(train2d.OUT_DIR), "2d", _RUN, pictures_2d("2d"), train2d),
        Part(Path(train_locate.OUT_DIR), "locate", ("history.json", "metrics.json")),
        Part(Path(cfg.short_2d), "2d_short", _RUN, {}, train2d, train2d.RECIPES["short"]),
        Part(Path(ablations.OUT_DIR), "ensemble", ("metrics.json",)),
        Part(Path(cross_validate.OUT_DIR), "", ("cross_validation.json",), folds, cross_validate),
        Part(Path(robust), "cross_validation_heads", ("cross_validation.json",)),
        Part(Path(seeds), "cross_validation_ensemble", ("cross_validation.json",)),
        Part(Path(grid_search_3d.OUT_DIR), "search_3d", _SEARCH, {FIGURE: "search_3d.png"}, grid_search_3d),
        Part(Path(grid_search.OUT_DIR), "search_2d", _SEARCH, {FIGURE: "search_2d.png"}, grid_search),
    ]
    drawn = {"2d_original": pictures_2d("2d_original"), "grid_3d_inr_rate": {FIGURE: "search_3d_inr_rate.png"}}
    drawn |= {"networks": {FIGURE: "search_3d_networks.png"}, "grid_2d_networks": {FIGURE: "search_2d_networks.png"}}
    for folder in sorted(Path(cfg.ablations).glob("*")):
        if folder.is_dir() and ".previous-" not in folder.name and not folder.name.startswith(_SUMMARISED):
            names = _SEARCH if (folder / "search.json").exists() else ("metrics.json",)
            names = _RUN if (folder / "config.json").exists() else names
            result.append(Part(folder, f"ablations/{folder.name}", names, drawn.get(folder.name, {})))
    return result


def pictures_2d(name):
    """The pictures of a 2D run, under a name."""
    return {f"plots/{plot}.png": f"{name}_{plot}.png" for plot in ("predictions", "training_curves")}


def check(part):
    """Raises UserError where the results of a Part are not whole, not of real data, or not of the recipe."""
    folder, again = part.folder, "the script that wrote it"
    for name in [*part.names, *part.pictures]:
        require((folder / name).is_file(), f"{folder}: no {name} in it")
    content = load_json(folder / part.names[-1], again)
    entries = list(content.values()) if RESULTS in part.names else [content]
    require(not any("error" in entry for entry in entries), f"{folder}: a point of this search failed")
    require(not any(entry["synthetic"] for entry in entries), f"{folder}: of SYNTHETIC phantoms")
    if "config.json" in part.names:
        config = load_json(folder / "config.json", again)
        n = config["constants"]["MAX_CASES"]
        require(not n, f"{folder}: of {n} cases only")
        if config["environment"]["git_commit"].endswith("-dirty"):
            print(f"{folder}: of code that was not committed ({config['environment']['git_commit']})")
    if part.script in (train_3d, train2d):
        places = {name: config["constants"][name.upper()] for name in _PLACES if name.upper() in config["constants"]}
        cfg = configure(vars(part.script), [], **part.options, **places)
        same_constants(folder, cfg, constants(vars(part.script)))
    elif part.script is cross_validate:
        changed = [
            n for n, (v, _) in constants(vars(cross_validate)).items() if content.get("constants", {}).get(n, v) != v
        ]
        wrong = [name for name in changed if name.lower() not in (*_PLACES, "runs", "folds", "device", "num_workers")]
        require(not wrong, f"{folder}: a cross-validation with other settings ({', '.join(wrong)})")
    elif part.script:
        cfg = configure(vars(part.script), [])
        there, wanted = load_json(folder / "search.json", again), settings(cfg)
        wrong = [n for n, value in wanted.items() if n.lower() not in _PLACES and there.get(n, value) != value]
        require(not wrong, f"{folder}: a search with other settings ({', '.join(wrong)})")
        missing = grid_points(cfg).keys() - content.keys()
        require(not missing, f"{folder}: {len(missing)} points of this search are missing")


def copy(files):
    """Copies files {source: target}; returns the targets."""
    for source, target in files.items():
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
    return list(files.values())


def draw(folder, results):
    """Draws the pictures that are of no run; returns the paths of the files written."""
    paths = [
        generate_architecture_diagram.run(
            configure(vars(generate_architecture_diagram), [], out=f"{folder}/architecture.jpg")
        )
    ]
    paths += draw_head(Path(heads.HEADS) / HEAD, folder, results)
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


def draw_head(head, folder, results):
    """Draws the two pictures of a whole head, and keeps its rows of the table; returns the paths of the files written."""
    if not head.is_file():
        print(f"not drawn: {head} is missing")
        return []
    with tempfile.TemporaryDirectory() as temporary:
        cfg = configure(vars(predict), [], out_dir=f"{temporary}/predictions")
        cfg.inputs = [str(head)]
        require(predict.run(cfg), f"{head}: could not be segmented")
        (picture,) = Path(cfg.out_dir).glob("*.png")
        paths = [*copy({picture: folder / "head_check.png"}), results / _SAMPLE]
        with open(Path(cfg.out_dir) / "volumes.csv", newline="", encoding="utf-8") as table:
            rows = [{name: row[name] for name in _COLUMNS} for row in csv.DictReader(table)]
        save_json(results / _SAMPLE, [{**row, "scan": head.name} for row in rows])
    cfg = configure(vars(viz), [], out=f"{folder}/head_3d.png", by_label=True, interactive="False")
    cfg.inputs = [str(head)]
    drawn = viz.run(cfg)
    return [*paths, *drawn, brain_of_the_page(drawn[0])]


def brain_of_the_page(picture, path=ROOT / "hippo/web/brain.png"):
    """Writes the left view of a picture by viz.py, without its white margin, small and transparent around the brain."""
    both = plt.imread(picture)[:, :, :3]
    view = both[:, : both.shape[1] // 2]
    brain = binary_erosion(binary_fill_holes(largest_component(view.min(-1) < 1)))  # without the paler rim
    height, width = (slice(places.min(), places.max() + 1) for places in np.nonzero(brain))
    rgba = np.dstack([view, brain])[height, width]
    size = round(_BRAIN_PIXELS * rgba.shape[0] / rgba.shape[1]), _BRAIN_PIXELS
    with atomic(path) as temporary:
        plt.imsave(temporary, resize(rgba, size, anti_aliasing=True).clip(0, 1), format="png")
    return Path(path)


if __name__ == "__main__":
    run_script(main)

"""Measures what locating networks find and how well they measure the intracranial space: on heads painted from anatomies
that a network has not seen, and on real heads beside hippodeep. The true intracranial space of an anatomy: see
hippo.data.anatomies.bound.

    python -m tools.locating --runs=pretrained/locate.pth                        a network that has seen all anatomies
    python -m tools.locating --runs=runs/a,runs/b --heads=FOLDER --out=FILE      folders of train_locate.py, all folds in each

A run is a checkpoint, or a folder that holds fold_0 to fold_4 and all (folders of train_locate.py with FOLD 0 to 4 and -2).
Each fold measures the anatomies that it has not seen; `all`, or else the first fold, looks at the real heads. Two minutes a
run on two cores.
"""

import csv
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

from hippo.data.anatomies import AROUND_T1, DURA, OUTSIDE, SINUS
from hippo.data.cases import case_id
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import save_json
from hippo.heads.anatomy import FREESURFER, SIDES
from hippo.heads.locate import ETIV_MIDDLE, load_locator, locate
from hippo.heads.scan import read_scan
from hippo.models.checkpoint import load_checkpoint
from hippo.options import configure, run_script
from tools.heads import find_heads
from tools.simulate import DEFECTIVE, intracranial_mm3, paint, scan_of

import numpy as np
import torch
from scipy.ndimage import binary_dilation, gaussian_filter

RUNS = "pretrained/locate.pth"  # checkpoints and folders of runs, separated by commas
ANATOMIES = "anatomies"  # folder of label maps, see get_data.py
HEADS = ""  # BIDS folder of heads without skull, with hippodeep's volumes in its derivatives; empty: none
OUT = "locating.json"  # file to write
WORKERS = 2  # processes, each with one thread
DEVICE = "cpu"  # of the networks

_SIZES = (0.93, 1.0, 1.07)  # the same head with voxels of other sizes, in mm
_NEAR_MM = 6  # a centre that is further from the true one is not found
_RIMS = (0.0, 0.1, 0.2, 0.25, 0.3)  # brightness of a rim around a brain, as a share of the brain's
_RIM_MM = 16


def main():
    run(configure(globals()))


def run(cfg):
    """Measures all runs on the same images, prints a line for each and kind of image, and writes the file."""
    runs = {name: find_networks(Path(name)) for name in cfg.runs.split(",")}
    paths = sorted(Path(cfg.anatomies).glob("*.nii.gz"))
    require(paths, f"{cfg.anatomies}: no label maps in it; get them with: python get_data.py --anatomies=anatomies")
    with ProcessPoolExecutor(cfg.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        painted = list(pool.map(partial(look_at_anatomy, runs=runs, device=cfg.device), enumerate(paths)))
        real = []
        if cfg.heads:
            real = list(pool.map(partial(look_at_head, runs=runs, device=cfg.device), find_heads(cfg.heads)))
    results = {}
    for name in runs:
        rows = [row for of_anatomy in painted for row in of_anatomy[name]]
        results[name] = {"etiv": fit_etiv(rows), "summary": summarise(rows), "rows": rows}
        if real:
            results[name] |= compare(cfg.heads, {head: of_runs[name] for head, of_runs in real})
        for kind, line in (results[name]["summary"] | {"real": results[name].get("real", {})}).items():
            print(name, kind, " ".join(f"{key} {value:.3f}" for key, value in line.items()), flush=True)
        print(name, "etiv", " ".join(f"{key} {value:.3f}" for key, value in results[name]["etiv"].items()), flush=True)
        rims = results[name].get("rims_mm3", {})
        print(name, "rims", {rim: round(volume / 1000) for rim, volume in rims.items()}, "ml", flush=True)
    save_json(cfg.out, results)


def find_networks(path):
    """Returns [(path of a checkpoint, names of the anatomies that it is measured on, or None for all)], the one for real
    heads first."""
    if path.is_file():
        return [(path, None)]
    folds = sorted(path.glob("fold_*/last.pth"))
    require(folds, f"{path}: neither a checkpoint nor a folder of runs: no fold_*/last.pth in it")
    whole = path / "all" / "last.pth"
    found = [(whole, [])] if whole.is_file() else []
    return found + [(fold, load_checkpoint(fold)["val_cases"]) for fold in folds]


def networks_of(runs, device):
    """Yields (name of a run, TrainedModel, names of anatomies or None, device, dtype) of each network."""
    with redirect_stdout(None):
        device, dtype = set_up_device(device, True)
    torch.set_num_threads(1)
    for name, networks in runs.items():
        for path, cases in networks:
            yield name, load_locator(path).to(device), cases, device, dtype


def look_at_anatomy(numbered, runs, device):
    """Locates in images of an anatomy. Returns {run: a row for each image and network that has not seen the anatomy}."""
    number, path = numbered
    used = [n for n in networks_of(runs, device) if n[2] is None or path.name.removesuffix(".nii.gz") in n[2]]
    rows = {name: [] for name in runs}
    for kind, scan, labels, sizes in images(path, number) if used else ():
        truth = {side: np.argwhere(labels == FREESURFER[side]).mean(0) for side in SIDES}
        volume = intracranial_mm3(labels)
        for size in sizes:
            scaled = scan_of(scan.array, np.diag([size, size, size, 1]))
            for name, network, _, *where in used:
                found = locate(network, scaled, *where)
                row = {"anatomy": path.name, "kind": kind, "size": size, "true_mm3": volume * size**3}
                row |= {"inside_mm3": inside_mm3(found), "etiv_mm3": found.etiv_mm3}
                for side in SIDES:
                    true, centre = (truth[side] - (np.array(labels.shape) - 1) / 2) * size, found.centres[side]
                    row[side] = None if side in found.problems else float(np.linalg.norm(centre - true))
                rows[name].append(row)
    return rows


def inside_mm3(found):
    """Returns the volume that a network labels intracranial."""
    return float(found.inside.sum() * found.window.spacing_mm**3)


def images(path, number):
    """Yields (kind, Scan, label map, sizes) of the images of an anatomy: heads and brains alone, painted plainly as T1, and
    with dark bone under bright fat, shading and more noise."""
    rng = np.random.default_rng([5, number])
    whole, labels = paint(path, "T1", rng)
    outside, line = (labels == 0) | (labels >= OUTSIDE), np.linspace(-1, 1, labels.shape[0], dtype=np.float32)
    table = np.full(1024, np.nan, np.float32)
    for label, ends in AROUND_T1.items():
        table[label] = np.mean(ends) * rng.uniform(0.8, 1.2)
    table[SINUS] = table[DURA]
    around = table[labels]
    image = np.where(np.isnan(around), whole.array, gaussian_filter(np.nan_to_num(around), 0.5))
    slopes = rng.uniform(-0.3, 0.3, 3)
    image = image * np.exp(slopes[0] * line[:, None, None] + slopes[1] * line[:, None] + slopes[2] * line)
    natural = whole._replace(array=image + 0.03 * rng.standard_normal(image.shape, np.float32))
    for name, scan, sizes in (("plain", whole, _SIZES), ("natural", natural, (1.0,))):
        yield f"{name} head", scan, labels, sizes
        yield f"{name} brain", scan._replace(array=np.where(outside, 0, scan.array)), labels, sizes


def line_of(true, found):
    """Returns slope, correlation and ratio of spreads of found volumes, both divided by their mean, against true ones."""
    true, ratio = np.array(true), np.sum(true) / np.sum(found)
    found = np.array(found) * ratio
    slope, r = np.polyfit(true, found, 1)[0], np.corrcoef(true, found)[0, 1]
    return {"slope": slope, "r": r, "spreads": found.std() / true.std(), "true_by_found": ratio}


def fit_etiv(rows):
    """Returns the constants of hippo.heads.locate.estimate_etiv that fit the images best: the line through their logarithms."""
    inside, true = (np.log([row[key] for row in rows]) - np.log(ETIV_MIDDLE) for key in ("inside_mm3", "true_mm3"))
    power, offset = np.polyfit(inside, true, 1)
    return {"scale": float(np.exp(offset)), "power": float(power)}


def summarise(rows):
    """{kind: slope, r, ... of natural size (and of all sizes), number of hippocampi, share of them found and the worst
    distance in mm}, without DEFECTIVE labels."""
    result = {}
    for kind in sorted({row["kind"] for row in rows}):
        of_kind = [row for row in rows if row["kind"] == kind]
        for name, some in ((kind, [r for r in of_kind if r["size"] == 1]), (f"{kind}, all sizes", of_kind)):
            sides = [(row, side) for row in some for side in SIDES]
            off = [row[side] for row, side in sides if (case_id(row["anatomy"]), side) not in DEFECTIVE]
            near = [distance is not None and distance < _NEAR_MM for distance in off]
            result[name] = line_of([r["true_mm3"] for r in some], [r["etiv_mm3"] for r in some])
            result[name] |= {"sides": len(off), "found": np.mean(near), "worst_mm": max(d or np.inf for d in off)}
    return result


# ---- real heads


def look_at_head(path, runs, device):
    """Returns (name of a head, {run: (eTIV, problems, eTIV with each rim of _RIMS around the brain)})."""
    scan, result = read_scan(path), {}
    brain = scan.array > 0
    reach = binary_dilation(brain[::3, ::3, ::3], iterations=round(_RIM_MM / 2.7))
    reach = np.kron(reach, np.ones((3, 3, 3), bool))[tuple(map(slice, brain.shape))]
    level = np.median(scan.array[brain])
    for name, network, _, *where in networks_of(runs, device):
        if name in result:
            continue
        volumes = []
        for rim in _RIMS if path.name.startswith("sub-01") else (0.0,):
            changed = scan if rim == 0 else scan._replace(array=np.where(reach & ~brain, rim * level, scan.array))
            found = locate(network, changed, *where)
            volumes.append(found.etiv_mm3)
            if rim == 0:
                problems = found.problems
        result[name] = volumes[0], problems, volumes
    return path.name.split("_")[0], result


def compare(heads, found):
    """Compares the volumes of a run with hippodeep's eTIV. found: {head: as look_at_head returns}."""
    with open(Path(heads) / "derivatives/hippodeep/volumes.csv", newline="") as file:
        theirs = {row["participant_id"]: float(row["etiv_mm3"]) for row in csv.DictReader(file)}
    names = [name for name in found if name in theirs]
    line = line_of([theirs[name] for name in names], [found[name][0] for name in names])
    rows = {name: {"etiv_mm3": found[name][0], "hippodeep_mm3": theirs[name]} for name in names}
    rims = dict(zip(_RIMS, next(of_head[2] for of_head in found.values() if len(of_head[2]) > 1)))
    line["not_found"] = sum(len(of_head[1]) for of_head in found.values())
    return {"real": line, "rims_mm3": rims, "real_rows": rows}


if __name__ == "__main__":
    run_script(main)

"""The worker process that segments uploaded scans. It loads the networks once, and can be killed at any moment."""

import contextlib
import math
import multiprocessing
import os
import re
import shutil
import signal
import traceback
from pathlib import Path
from types import SimpleNamespace

from hippo.data import cases
from hippo.data.nifti import is_phantom, open_nifti, save_scan
from hippo.errors import UserError, require
from hippo.files import load_json, work_folder
from hippo.heads.anatomy import DESCRIPTIONS, FREESURFER, LABELS, WINDOW
from hippo.heads.flags import FLAGS, flags_in, verdict
from hippo.heads.result import PARTS
from hippo.models.inference import predict_volume
from hippo.pictures.plots import COLOURS
from hippo.processes import end_with_parent
from hippo.segmenter import Segmenter, Settings
from hippo.study.archives import is_zip
from hippo.study.convert import fetch
from hippo.study.dicom import read_zip
from hippo.study.inputs import Item
from hippo.study.outputs import process
from hippo.study.records import RECORDS
from hippo.study.volumes import add_statistics, save_table

import nibabel as nib
import numpy as np

SCAN = "scan"  # file name of every job's scan, whatever its user calls it
RESULTS = {  # file name endings of the results of a job
    "labels": ("_hippocampus.nii.gz", "_seg.nii.gz"),
    "picture": ("_hippocampus.png",),
    "volumes": ("volumes.csv",),
    "scan": ("converted.nii.gz",),
}
_CROP = {label: (f"{name} hippocampus", "", COLOURS[label]) for label, name in cases.LABELS.items()}


def start_worker(settings, most_mb):
    """Starts a worker. Returns (process, connection). settings: the configuration of predict.py; most_mb: limit of a
    scan's voxels.

    The worker sends ("ready", device name) or ("refused", reason). For each (folder, label, id of a series or empty) that
    it receives, it sends ("step", name) for each step, and finally ("done", result), ("failed", reason) or ("choosing",
    list of series).
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, settings, most_mb), daemon=True)
    process.start()
    there.close()
    return process, here


def _work(connection, settings, most_mb):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C and ends this process
    end_with_parent()  # the server
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            segmenter = Segmenter.load(**vars(Settings.of(settings)))
        warm_up(segmenter.networks)
        connection.send(("ready", str(segmenter.networks.device)))
    except UserError as error:
        connection.send(("refused", str(error)))
        return
    with contextlib.suppress(EOFError):
        while True:
            folder, label, choice = connection.recv()
            connection.send(_result(Path(folder), label, choice, segmenter, settings, most_mb, connection))


def warm_up(networks):
    """Runs each network once, so that the first scan does not wait for torch's preparations."""
    for model in filter(None, (*networks.models, networks.any_contrast)):
        predict_volume([model], np.zeros(WINDOW, np.float32), networks.device, networks.dtype, True)


def _result(folder, label, choice, segmenter, settings, most_mb, connection):
    """Segments the scan in a folder. Returns ("done", result), ("failed", reason) or ("choosing", list of series)."""

    def progress(step):
        connection.send(("step", step))

    try:
        path = next(folder.glob(f"{SCAN}*"))
        if not is_zip(path):
            return "done", segment_upload(folder, path, label, segmenter, settings, most_mb, progress)
        series = _series_in(path, choice, most_mb)
        if len(series) > 1:
            facts = ("id", "name", "number", "kind", "grid", "why")
            return "choosing", [{fact: getattr(one, fact) for fact in facts} for one in series]
        with work_folder(folder) as work:
            scan, label = fetch(series[0], work), label_of(series[0].name)
            progress("converted")
            result = segment_upload(folder, scan, label, segmenter, settings, most_mb, progress)
            save_scan(folder / RESULTS["scan"][0], open_nifti(scan))
            return "done", result | {"converted": True, "label": label}
    except UserError as error:  # the message must not tell where the server keeps its files
        return "failed", str(error).replace(str(folder / SCAN), "scan").replace(str(folder), ".")
    except OSError as error:
        return "failed", f"the server could not write its results ({error.strerror or 'no room'})"
    except Exception as error:  # the server continues, and its log contains nothing about the scan
        print(f"error in a job: {where(error)}", flush=True)
        return "failed", f"this is a fault of the program ({type(error).__name__}); please report it"


def where(error):
    """Returns the type of an error and the line that raised it, without its message, which may contain data of a scan."""
    line = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(line.filename).name}, line {line.lineno}"


def _series_in(path, choice, most_mb):
    """Returns the Series of a .zip file that is to be segmented, or all to choose from if several may be. Raises
    UserError if there is none. choice: id of the one that was chosen, or empty."""
    discs = read_zip(path, most_bytes=most_mb * 1_000_000)
    series = [one for disc in discs for one in disc.series]
    if choice:
        return [one for one in series if one.id == choice]
    candidates = [one for one in series if not one.why]
    require(candidates, "; ".join(disc.why_none for disc in discs))
    good = [one for one in candidates if not one.problem] or candidates[:1]
    return good if len(good) == 1 else [one for one in series if one.is_mri and not one.problem]


def segment_upload(folder, path, label, segmenter, settings, most_mb, progress):
    """Segments a scan like predict.py, and writes its files into a folder. Returns what the page shows: plain values as
    in answers.Result. Raises UserError if there is nothing to show. label: name of the scan in volumes.csv."""
    try:
        image = open_nifti(path)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{path}: ")) from None
    # size in memory: scaled values take 8 bytes, others become float32 at the latest
    scaled = (getattr(image.dataobj, "slope", 1), getattr(image.dataobj, "inter", 0)) != (1, 0)
    size = math.prod(image.shape) * (8 if scaled else max(4, image.get_data_dtype().itemsize)) / 1e6
    require(size <= most_mb, f"{size:,.0f} MB unpacked; this page takes {most_mb} MB: crop the scan, or use predict.py")
    cfg = SimpleNamespace(**vars(settings) | {"out_dir": folder})
    single_label = segmenter.networks.single_label
    process(Item(SCAN, path, label=label), segmenter, cfg, False, progress)
    record = load_json(folder / RECORDS / "scans" / f"{SCAN}.json", "the same upload")
    if "traceback" in record:  # print its last location without the message, which may contain data of the scan
        lines = [line.strip() for line in record["traceback"].splitlines() if line.strip().startswith("File ")]
        print(f"error in a job: {lines[-1]}", flush=True)
        raise UserError("this is a fault of the program; please report it")
    rows = add_statistics([record], {})
    save_table(folder, rows, False, False)
    shutil.rmtree(folder / RECORDS)
    sides = [_side(row) for row in rows]
    require(any(side["total_mm3"] for side in sides), "; ".join(side["problem"] for side in sides))
    is_head = len(rows) == 2
    labels = DESCRIPTIONS[single_label] if is_head or single_label else _CROP
    _add_middles(sides, next(folder.glob(f"{SCAN}_*.nii.gz")), is_head)
    first = rows[0]
    return {
        "sides": sides,
        "etiv_mm3": _number(first["etiv_mm3"]),
        "asymmetry": _number(first["asymmetry"]),
        "flags": {flag: FLAGS[flag].explanation for side in sides for flag in side["flags"]},
        "labels": {index: {"name": name, "colour": tint} for index, (name, _, tint) in labels.items()},
        "seconds": float(first["seconds"]),
        "model": first["model"],
        "converted": False,
        "synthetic": segmenter.networks.synthetic or is_phantom(image),
    }


def label_of(name):
    """Converts a file name to a label that is safe in headers, tables and file names: letters, digits, dots, hyphens and
    underscores, at most 100 of them."""
    return (
        re.sub(r"[^A-Za-z0-9._-]", "_", name.replace("\\", "/").rpartition("/")[2][-100:]).lstrip(".-") or "scan.nii.gz"
    )


def _side(row):
    """Returns what the page shows of a row of volumes.csv."""
    flags = flags_in(row["flags"])
    colour, doubts = verdict(flags, bool(row["total_mm3"]))
    return {
        "side": row["side"],
        **{f"{part}_mm3": _number(row[f"{part}_mm3"]) for part in PARTS},
        "quality": _number(row["quality"]),
        "verdict": colour,
        "doubts": [str(flag) for flag in doubts],
        "flags": [str(flag) for flag in flags],
        "problem": row["flags"].partition("failed: ")[2],
        "middle_mm": None,
    }


def _number(text):
    return float(text) if text else None


def _add_middles(sides, path, is_head):
    """Adds the centre of each side, in mm of the scanner."""
    image = nib.load(path)
    labels = np.asarray(image.dataobj)
    voxels = np.argwhere(labels)
    right = np.isin(labels[tuple(voxels.T)], (*LABELS["right"], FREESURFER["right"]))
    for side in sides:
        mine = voxels[right == (side["side"] == "right")] if is_head else voxels
        if len(mine):
            side["middle_mm"] = nib.affines.apply_affine(image.affine, mine.mean(0)).tolist()

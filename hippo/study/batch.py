"""The scans of a study, one after the other or in several processes, and what is joined of their records."""

import contextlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from hippo import __version__
from hippo.device import describe_environment
from hippo.errors import UserError
from hippo.files import save_json, save_text
from hippo.pictures import plots
from hippo.pictures.page import page
from hippo.study import bids, tables
from hippo.study.networks import load_networks
from hippo.study.outputs import process
from hippo.study.records import RECORDS, load_records, load_study, remove_half_written

import numpy as np
import torch
from tqdm import tqdm

_MOST = 61  # processes of a pool on Windows
_SCANS_EACH = 5  # of a process, at least, so that it is worth its start of 3 s
_JOINED = ("volumes.csv", "volumes.tsv", "volumes.json", "adjustment.json", "report.html")
_process_state = {}  # of a worker: its networks and settings


def run_items(items, networks, cfg, is_bids):
    """Segments Items, in cfg.workers processes, or in this one. Raises UserError where a worker dies.

    A process of a shard takes one thread: where shards share a machine, more threads than cores wait for each other.
    """
    workers, threads = min(cfg.workers or _usual_workers(items, networks), len(items)), torch.get_num_threads()
    each = 1 if cfg.shard else max(1, threads // workers)
    if workers > 1:
        _run_in_processes(items, cfg, is_bids, workers, each)
        return
    torch.set_num_threads(each)
    try:
        for item in tqdm(items, desc="predict", disable=None):
            process(item, networks, cfg, is_bids)
    finally:
        torch.set_num_threads(threads)


def _usual_workers(items, networks):
    """One process a core, each with enough scans to be worth its start; one on a GPU."""
    on_cpu = networks.place[0].type == "cpu"
    return max(1, min(torch.get_num_threads(), len(items) // _SCANS_EACH, _MOST)) if on_cpu else 1


def _run_in_processes(items, cfg, is_bids, workers, threads):
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (cfg, is_bids, threads))
    try:
        jobs = [pool.submit(_work, item) for item in items]
        for job in tqdm(as_completed(jobs), desc="predict", total=len(jobs), disable=None):
            job.result()
    except BrokenProcessPool:
        text = "a worker process ended, most likely for want of memory; start again to go on, with fewer --workers"
        raise UserError(text) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(cfg, is_bids, threads):
    torch.set_num_threads(threads)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        _process_state["fixed"] = load_networks(cfg), cfg, is_bids


def _work(item):
    process(item, *_process_state["fixed"])


def join(out_dir, adjustment=None):
    """Writes the table of the records in a folder of results and, of more than one scan, the page; returns the records.

    adjustment: for the adjusted volumes, see tables.fit_adjustment; None: that of the study, or a fit to it. Raises
    UserError where a folder holds no results.
    """
    out_dir, study = Path(out_dir), load_study(out_dir)
    records, is_bids = load_records(out_dir), bool(study["bids"])
    for name in (*_JOINED, *bids.FILES, f"{RECORDS}/study.json", f"{RECORDS}/study.png"):
        remove_half_written(out_dir / name)
    fit = adjustment or study["adjustment"] or tables.fit_adjustment(records)
    rows = tables.add_statistics(records, fit)
    tables.save_table(out_dir, rows, any(name in row for row in rows for name in tables.SPREADS), is_bids)
    if fit:
        save_json(out_dir / "adjustment.json", fit)
    else:
        (out_dir / "adjustment.json").unlink(missing_ok=True)  # of when there were more
    if is_bids:
        commit = describe_environment()["git_commit"]
        bids.save_description(
            out_dir, study["bids"], study["settings"]["weights"], commit, study["settings"]["labels"] == "freesurfer"
        )
    if len(records) > 1:
        _save_page(out_dir, study, records, rows)
    return records


def _save_page(out_dir, study, records, rows):
    """Writes report.html."""
    scans, at = {}, 0
    for record in records:
        small = out_dir / RECORDS / "scans" / f"{record['name']}.webp"
        mine, at = rows[at : at + len(record["rows"])], at + len(record["rows"])
        has_picture = small.relative_to(out_dir).as_posix() in record["files"]
        scans[record["name"]] = mine, small.read_bytes() if has_picture else None
    plot = out_dir / RECORDS / "study.png"
    heads = {name: rows for name, (rows, _) in scans.items() if len(rows) == 2 and all(map(_is_whole, rows))}
    drawn = len(heads) > 2
    if drawn:
        plots.cohort(list(heads), _columns(heads), plot, f"{len(heads)} heads")
    facts = {"version": f"{__version__}, commit {describe_environment()['git_commit']}"}
    facts |= {name: f"{digest[:12]}... (SHA-256)" for name, digest in study["settings"]["weights"].items()}
    facts |= {name: str(v) for name, v in study["settings"].items() if name not in ("weights", "version")}
    title = f"Hippocampi: {Path(study['bids']).name}" if study["bids"] else "Hippocampi"
    save_text(out_dir / "report.html", page(title, scans, plot.read_bytes() if drawn else None, facts))


def _is_whole(row):
    """Whether a row has all that plots.cohort draws."""
    return bool(row["total_mm3"] and row["etiv_mm3"] and row["anterior_mm3"])


def _columns(heads):
    """The columns that plots.cohort draws, of {name: [left row, right row]}."""
    scales = {"etiv_mm3": ("etiv_ml", 1e-3), "total_mm3": ("total_mm3", 1.0), "anterior_mm3": ("anterior_mm3", 1.0)}
    return {
        side: {
            name: np.array([float(rows[i][column]) * scale for rows in heads.values()])
            for column, (name, scale) in scales.items()
        }
        for i, side in enumerate(("left", "right"))
    }

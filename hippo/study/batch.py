"""Processes the scans of a study, in one or several processes, and joins their records into the table and the page."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from hippo import __version__
from hippo.device import describe_environment
from hippo.errors import UserError, fail
from hippo.files import remove_half_written, save_json, save_text
from hippo.heads.result import readable
from hippo.processes import end_with_parent
from hippo.segmenter import Segmenter, Settings
from hippo.study import bids, change, volumes
from hippo.study.figures import of_change, of_profiles, of_volumes
from hippo.study.outputs import failed_row, process
from hippo.study.page import page
from hippo.study.profiles import save_profiles_of
from hippo.study.records import begin, load_records, load_study, save_record, was_begun
from hippo.study.sharing import RECORDS, locked

import torch
from tqdm import tqdm

_MOST = 61  # maximum number of processes in a pool on Windows
_SCANS_EACH = 2  # minimum number of scans per process, so that its start of 2 s pays off
_JOINED = ("volumes.csv", "volumes.tsv", "volumes.json", "change.tsv", "change.json", "profiles.tsv", "profiles.json")
_PLOTS = (f"{RECORDS}/study.png", f"{RECORDS}/change.png", f"{RECORDS}/profiles.png")
_JOINED += ("adjustment.json", "report.html")
_process_state = {}  # state of a worker process: its Segmenter and settings


def run_items(items, segmenter, cfg, is_bids):
    """Segments Items in cfg.workers processes, or in this one. Raises UserError if a worker cannot start, and OSError
    if the disk is full.

    A process of a shard uses one thread: if several shards share a machine, more threads than cores would slow each
    other down.
    """
    workers, threads = (
        min(cfg.workers or _usual_workers(items, segmenter.networks), len(items)),
        torch.get_num_threads(),
    )
    each = 1 if cfg.shard else max(1, threads // workers)
    if workers > 1:
        _run_in_processes(items, segmenter.networks.name, cfg, is_bids, workers, each)
        return
    torch.set_num_threads(each)
    try:
        for item in tqdm(items, desc="predict", disable=None):
            process(item, segmenter, cfg, is_bids)
    finally:
        torch.set_num_threads(threads)


def _usual_workers(items, networks):
    """Returns the default number of workers: one per core, with enough scans each to justify its start; one on a GPU."""
    on_cpu = networks.device.type == "cpu"
    return max(1, min(torch.get_num_threads(), len(items) // _SCANS_EACH, _MOST)) if on_cpu else 1


def _run_in_processes(items, model, cfg, is_bids, workers, threads):
    """Segments Items in worker processes. If one of them is killed, the unfinished scans of all workers are repeated,
    each in its own process. A scan whose process is killed again becomes a failed row; the others continue."""
    with tqdm(total=len(items), desc="predict", disable=None) as bar:
        left = _run_pool(items, cfg, is_bids, workers, threads, bar)
        while left:
            suspects = [item for item in left if was_begun(cfg.out_dir, item)]
            if not suspects:
                raise UserError("a worker process was killed before it began; for want of memory? Try --workers=1")
            for item in suspects:
                if _run_pool([item], cfg, is_bids, 1, threads, bar):
                    reason = "its process was killed, for want of memory or by a fault of a library"
                    row = failed_row(item, model, reason)
                    try:
                        save_record(cfg.out_dir, item, [row], [], begin(cfg.out_dir, item))
                    except OSError as error:
                        fail(f"{item.path}: {error}")
                    bar.update()
            rest = [item for item in left if item not in suspects]
            left = _run_pool(rest, cfg, is_bids, workers, threads, bar) if rest else []


def _run_pool(items, cfg, is_bids, workers, threads, bar):
    """Segments Items in new processes. Returns the Items left unfinished because a process was killed."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), context, _start_worker, (cfg, is_bids, threads))
    done = set()
    try:
        with _interrupts_held():  # only this process handles Ctrl-C; it lets the others finish their current scans
            jobs = {pool.submit(_work, item): item for item in items}
        for job in as_completed(jobs):
            job.result()
            done.add(jobs[job])
            bar.update()
    except BrokenProcessPool:
        return [item for item in items if item not in done]
    except KeyboardInterrupt:
        print("\nstopping after the scans that are being done", file=sys.stderr)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return []


@contextlib.contextmanager
def _interrupts_held():
    """Blocks Ctrl-C. On Linux and macOS, processes started in the meantime never receive it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(cfg, is_bids, threads):
    if not hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if multiprocessing.parent_process():
        end_with_parent()
    torch.set_num_threads(threads)
    gc.freeze()  # as in run_script
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            _process_state["fixed"] = Segmenter.load(**vars(Settings.of(cfg))), cfg, is_bids
    except Exception as error:  # reported by the first job, since a pool hides errors raised when its processes start
        _process_state["problem"] = f"a worker process could not start: {type(error).__name__}: {error}"


def _work(item):
    if "problem" in _process_state:
        raise UserError(_process_state["problem"])
    process(item, *_process_state["fixed"])


def join(out_dir, adjustment=None, prefer=""):
    """Writes the tables of all records in a results folder and, if there is more than one scan, the page. Returns the
    records.

    adjustment: for the adjusted volumes, see volumes.fit_adjustment; None: that of the study, or a fit to it. prefer:
    see change.choose; empty: that of the study. Raises UserError if the folder holds no results. Other runs wait in the
    meantime, so that the last one writes all records.
    """
    load_study(out_dir)  # before the lock, which would create the folder
    with locked(out_dir):
        return _join(Path(out_dir), adjustment, prefer)


def _join(out_dir, adjustment, prefer):
    study = load_study(out_dir)
    records, is_bids = load_records(out_dir), bool(study["bids"])
    for name in (*_JOINED, *bids.FILES, f"{RECORDS}/study.json", *_PLOTS):
        remove_half_written(out_dir / name)
    fit = adjustment or study["adjustment"] or volumes.fit_adjustment(records)
    rows, taken = volumes.add_statistics(records, fit), {}
    if is_bids:
        rows, taken = change.choose(rows, prefer or study["prefer"])
    volumes.save_table(out_dir, rows, any(name in row for row in rows for name in volumes.SPREADS), is_bids)
    if fit:
        save_json(out_dir / "adjustment.json", fit)
    else:
        (out_dir / "adjustment.json").unlink(missing_ok=True)  # left from when there were more scans
    changes = _save_changes(out_dir, study, rows, taken) if is_bids else []
    profiles = save_profiles_of(out_dir, records, is_bids)
    if is_bids:
        commit = describe_environment()["git_commit"]
        bids.save_description(
            out_dir, study["bids"], study["settings"]["weights"], commit, study["settings"]["labels"] == "freesurfer"
        )
    if len(records) > 1:
        _save_page(out_dir, study, records, rows, changes, profiles)
    return records


def _save_changes(out_dir, study, rows, taken):
    """Writes change.tsv and change.json if a person has two sessions, and removes earlier ones otherwise. Returns its
    rows."""
    times = change.load_times(study["bids"], {person for person, session in taken if session})
    changes = change.changes(rows, taken, times)
    if changes:
        volumes.save_rows(out_dir / "change.tsv", changes, change.columns())
    else:
        for name in ("change.tsv", "change.json"):
            (out_dir / name).unlink(missing_ok=True)
    return changes


def _save_page(out_dir, study, records, rows, changes, profiles):
    """Writes report.html. changes: rows of change.tsv; profiles: see save_profiles_of."""
    scans, at = {}, 0
    for record in records:
        small = out_dir / RECORDS / "scans" / f"{record['name']}.webp"
        mine, at = rows[at : at + len(record["rows"])], at + len(record["rows"])
        picture = None
        if small.relative_to(out_dir).as_posix() in record["files"]:
            with contextlib.suppress(OSError):  # another run does the scan again
                picture = small.read_bytes()
        scans[record["name"]] = mine, picture
    folder, tables = out_dir / RECORDS, {name: rows for name, (rows, _) in scans.items()}
    figures = {
        "volumes": of_volumes(tables, folder / "study.png"),
        "change": of_change(changes, folder / "change.png"),
        "profiles": of_profiles(profiles, folder / "profiles.png"),
    }
    facts = {"version": f"{__version__}, commit {describe_environment()['git_commit']}"}
    facts |= {name: f"{digest[:12]}... (SHA-256)" for name, digest in study["settings"]["weights"].items()}
    facts |= {name: readable(v) for name, v in study["settings"].items() if name not in ("weights", "version")}
    title = readable(f"Hippocampi: {Path(study['bids']).name}" if study["bids"] else "Hippocampi")
    save_text(out_dir / "report.html", page(title, scans, figures, facts, study["left_out"], changes))

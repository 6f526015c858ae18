"""Processes one scan of a study: writes its files and its rows of the table."""

import contextlib
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from hippo.data.nifti import open_nifti, save_scan
from hippo.errors import UserError, fail
from hippo.files import is_disk_full, remove_half_written, work_folder
from hippo.heads.save import Paths, save_result
from hippo.study import bids
from hippo.study.convert import fetch
from hippo.study.records import begin, is_done, is_kept, save_record
from hippo.study.sharing import RECORDS
from hippo.study.volumes import empty_row


def paths_of(item, is_bids, is_crop, cfg):
    """Returns the Paths of an Item, relative to the results folder."""
    if is_bids:
        labels, soft, unsure = (f"{bids.output_name(item.name, kind)}.nii.gz" for kind in bids.KINDS)
        profile = f"{bids.output_name(item.name, 'profile')}.tsv"
        stem = item.name.rpartition("/")[2]
        is_named = {item.participant_id, item.session_id} - {""} <= {*stem.split("_")}  # as BIDS wants it
        picture = f"figures/{stem if is_named else item.name.replace('/', '_')}_hippocampus.png"
    else:
        kinds = ("seg" if is_crop else "hippocampus", "probabilities", "uncertainty")
        labels, soft, unsure = (f"{item.name}_{kind}.nii.gz" for kind in kinds)
        picture, profile = f"{item.name}_hippocampus.png", f"{item.name}_profile.tsv"
    small = f"{RECORDS}/scans/{item.name}.webp"
    return Paths(
        labels,
        soft * cfg.probabilities,
        unsure,
        picture * cfg.pictures,
        small * cfg.pictures,
        profile * cfg.profile,
    )


def process(item, segmenter, cfg, is_bids, progress=None):
    """Segments an Item, and writes its files and its record. A failed Item gets a row with the flag "failed: ...", and
    the record holds the traceback if the error was unexpected. Skips an Item that another run has finished. Raises
    OSError if the disk is full.

    progress: see segment.
    """
    try:
        if is_kept(cfg.out_dir, item) and not item.problem:
            print(f"{item.path} is not there; its earlier result stays", file=sys.stderr)
        elif cfg.overwrite or not is_done(cfg.out_dir, item):
            _process(item, segmenter, cfg, is_bids, progress)
    except OSError as error:  # not even a record could be written
        if is_disk_full(error):
            raise
        fail(f"{item.path}: {error}")


def _process(item, segmenter, cfg, is_bids, progress):
    """See process. Raises OSError if a record cannot be written."""
    state, written = begin(cfg.out_dir, item), []
    try:
        if item.problem:
            raise UserError(item.problem)
        rows = _segment_item(item, segmenter, cfg, is_bids, written, progress)
    except Exception as error:  # the failure of one scan must not end the batch
        if is_disk_full(error):
            raise
        foreseen = isinstance(error, UserError)
        if not foreseen:
            state["traceback"] = traceback.format_exc()
        while written:
            with contextlib.suppress(OSError):
                written.pop().unlink(missing_ok=True)
        rows = [failed_row(item, segmenter.networks.name, error if foreseen else f"{type(error).__name__}: {error}")]
    files = [path.relative_to(cfg.out_dir).as_posix() for path in written]
    save_record(cfg.out_dir, item, rows, files, state)


def failed_row(item, model, reason):
    """Returns the table row of an Item that could not be processed."""
    reason = str(reason).removeprefix(f"{item.path}: ").replace(";", ",").replace("\n", " ")
    return empty_row(item.label or item.path) | {"flags": f"failed: {reason}", "model": model}


def _segment_item(item, segmenter, cfg, is_bids, written, progress):
    """Segments an Item and returns its rows. Raises UserError, see scan.read_scan. written: list to which its files
    are appended.

    A series is converted, or unpacked, in a folder of work first; the scan is written beside its labels, if there are any.
    """
    if not item.series:
        return _segment_scan(item, item.path, segmenter, cfg, is_bids, written, progress)
    with work_folder(Path(cfg.out_dir) / RECORDS) as folder:
        scan = fetch(item.series, folder, lambda text: print(text, file=sys.stderr))
        try:
            if progress:
                progress("converted")
            rows = _segment_scan(item, scan, segmenter, cfg, is_bids, written, progress)
            if any(row["total_mm3"] for row in rows):
                copy = Path(cfg.out_dir) / f"{item.name}.nii.gz"
                remove_half_written(copy)
                written.append(copy)
                save_scan(copy, open_nifti(scan))
        except UserError as error:
            raise UserError(str(error).replace(str(scan), item.label).removeprefix(f"{item.label}: ")) from None
    return rows


def _segment_scan(item, scan, segmenter, cfg, is_bids, written, progress):
    """Segments a file, see _segment_item."""
    result = replace(segmenter(scan, item.etiv_mm3, progress), name=str(item.label or item.path))
    crop = result.scan.is_crop and not is_bids
    paths = paths_of(item, is_bids, result.scan.is_crop, cfg)
    save_result(result, cfg.out_dir, paths, crop, written)
    if is_bids:
        for kind, path in zip(bids.KINDS, paths):
            if path and Path(cfg.out_dir) / path in written:
                written.append(bids.save_sidecar(cfg.out_dir, item, kind, result.single_label))
    more = {"scanner": bids.scanner_of(item.path)} if is_bids else {}
    return [empty_row(item.label or item.path) | row | more for row in result.rows()]

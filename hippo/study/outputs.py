"""From one scan of a study to its files and rows."""

import contextlib
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from hippo.data.nifti import is_phantom, save_labels, save_like, to_stored_orientation
from hippo.errors import UserError, fail
from hippo.files import atomic, is_disk_full, remove_half_written
from hippo.heads.flags import OF_ETIV
from hippo.heads.picture import picture_of_scan, thumbnail
from hippo.heads.quality import Limits, judge
from hippo.heads.scan import read_scan
from hippo.heads.segment import joint_labels, joint_probabilities, segment
from hippo.heads.uncertainty import sample_scan
from hippo.study import bids
from hippo.study.records import begin, is_done, save_record
from hippo.study.sharing import RECORDS
from hippo.study.tables import PARTS, SPREADS, empty_row

import numpy as np

_PARTS = {  # description of labels and of soft maps; True: of a crop
    False: "L anterior 1, posterior 2; R anterior 3, posterior 4",
    True: "hippocampus: 1 anterior, 2 posterior",
}


class Paths(NamedTuple):
    """Where the results of a scan go, from the folder of results; without sidecars."""

    labels: str
    probabilities: str
    uncertainty: str
    picture: str
    thumbnail: str


def paths_of(item, is_bids, is_crop=False):
    """The Paths of an Item."""
    small = f"{RECORDS}/scans/{item.name}.webp"
    if is_bids:
        maps = [f"{bids.output_name(item.name, kind)}.nii.gz" for kind in ("dseg", "probseg", "uncertainty")]
        return Paths(*maps, f"figures/{item.name.rpartition('/')[2]}_hippocampus.png", small)
    maps = ("seg" if is_crop else "hippocampus", "probabilities", "uncertainty")
    return Paths(*(f"{item.name}_{kind}.nii.gz" for kind in maps), f"{item.name}_hippocampus.png", small)


def process(item, networks, cfg, is_bids, progress=None):
    """Segments an Item, and writes its files and its record: of one that cannot be done, a row with the flag "failed: ...",
    and the traceback in the record where that was not foreseen. Nothing is done where another run was faster. Raises
    OSError where the disk is full.

    progress: see segment.
    """
    try:
        if cfg.overwrite or not is_done(cfg.out_dir, item):
            _process(item, networks, cfg, is_bids, progress)
    except OSError as error:  # not even a record could be written
        if is_disk_full(error):
            raise
        fail(f"{item.path}: {error}")


def _process(item, networks, cfg, is_bids, progress):
    """See process. Raises OSError where a record cannot be written."""
    state, written = begin(cfg.out_dir, item), []
    try:
        if item.problem:
            raise UserError(item.problem)
        rows = _segment_item(item, networks, cfg, is_bids, written, progress)
    except Exception as error:  # one scan's failure ends no batch
        if is_disk_full(error):
            raise
        foreseen = isinstance(error, UserError)
        if not foreseen:
            state["traceback"] = traceback.format_exc()
        while written:
            with contextlib.suppress(OSError):
                (Path(cfg.out_dir) / written.pop()).unlink(missing_ok=True)
        rows = [failed_row(item, networks.name, error if foreseen else f"{type(error).__name__}: {error}")]
    save_record(cfg.out_dir, item, rows, written, state)


def failed_row(item, model, reason):
    """The row of an Item that could not be done."""
    reason = str(reason).removeprefix(f"{item.path}: ").replace(";", ",").replace("\n", " ")
    return empty_row(item.label or item.path) | {"flags": f"failed: {reason}", "model": model}


def segment_scan(scan, networks, cfg, progress=None):
    """(list of Hippocampus with all flags and refusals, Located or None): what predict.py says of a Scan under a
    configuration. progress: see segment."""
    # the models are unsure of phantoms: they have seen none, or only those
    strict = not (networks.synthetic or is_phantom(scan.image))
    # the comparison of models is for the shipped ones
    compared = (strict and networks.shipped) or cfg.contrast == "any"
    other = (networks.any_contrast, cfg.contrast) if compared else (None, "t1")
    side = "right" if cfg.mirror else cfg.side
    sides, located = segment(networks.models, networks.locator, scan, *networks.place, cfg.tta, side, *other, progress)
    return judge(sides, scan, limits_of(cfg), strict), located


def _segment_item(item, networks, cfg, is_bids, written, progress):
    """The rows of an Item that can be done. Raises UserError, see scan.read_scan. written: list that its files are added to."""
    start = time.perf_counter()
    scan = read_scan(item.path)
    sides, located = segment_scan(scan, networks, cfg, progress)
    etiv, etiv_flags = (located.etiv_mm3, located.flags) if located else (None, [])
    if item.etiv_mm3 is not None:
        etiv, etiv_flags = item.etiv_mm3, [flag for flag in etiv_flags if flag not in OF_ETIV]
    paths, spreads = paths_of(item, is_bids, scan.is_crop), [[]] * len(sides)

    def target(path):
        path = Path(cfg.out_dir) / path
        remove_half_written(path)
        written.append(path.relative_to(cfg.out_dir).as_posix())
        return path

    if not all(side.problem for side in sides):
        _save_maps(target, paths, scan, sides, cfg, networks.synthetic, is_bids)
    if networks.sampler:
        maps, spreads = sample_scan(networks.sampler, scan, sides, cfg.samples, *networks.place)
        maps = to_stored_orientation(maps, scan.image)
        words = "predictive entropy, mutual information; 0 to 1"
        save_like(target(paths.uncertainty), maps, scan.image, words, 1.0, networks.synthetic)
    seconds = time.perf_counter() - start
    rows = [_row(item.label or item.path, scan, side, etiv, etiv_flags, seconds) for side in sides]
    if networks.whole:
        rows = [row | {"anterior_mm3": "", "posterior_mm3": ""} for row in rows]
    for row, deviations in zip(rows, spreads):
        chosen = "any_contrast" in row["flags"].split(";")
        row["model"] = Path(cfg.any_contrast).name if chosen else networks.name
        if not chosen:  # the sampler is a model of T1
            row |= {column: f"{value:.1f}" for column, value in zip(SPREADS, deviations)}
    if cfg.pictures:
        picture = target(paths.picture)
        picture_of_scan(picture, scan, sides, rows)
        with atomic(target(paths.thumbnail)) as temporary:
            thumbnail(picture, temporary)
    if is_bids:
        for kind, path in zip(("dseg", "probseg", "uncertainty"), paths):
            if path in written:
                target(path.removesuffix(".nii.gz") + ".json")
                bids.save_sidecar(cfg.out_dir, item, kind, cfg.labels == "freesurfer")
    return rows


def _save_maps(target, paths, scan, sides, cfg, synthetic, is_bids):
    """Writes the labels of a scan, and its soft maps where they are asked for."""
    whole, crop = cfg.labels == "freesurfer", scan.is_crop and not is_bids
    labels = to_stored_orientation(joint_labels(sides, scan, whole, crop), scan.image)
    description = "17 left, 53 right hippocampus" if whole else _PARTS[crop]
    save_labels(target(paths.labels), labels, scan.image, description, synthetic)
    if cfg.probabilities:
        soft = np.round(255 * joint_probabilities(sides, scan, crop)).astype(np.uint8)
        soft = to_stored_orientation(soft, scan.image)
        save_like(target(paths.probabilities), soft, scan.image, _PARTS[crop], 1 / 255, synthetic)


def limits_of(cfg):
    """The Limits of a configuration."""
    return Limits(*(getattr(cfg, name) for name in Limits._fields))


def _row(label, scan, side, etiv, flags, seconds):
    """The row of one side of a scan."""
    row = empty_row(label) | {"side": side.side, "seconds": f"{seconds:.2f}"}
    row["flags"] = [*scan.flags, *flags, *side.flags]
    row["etiv_mm3"] = "" if etiv is None else f"{etiv:.0f}"
    if side.problem:
        row["flags"].append(f"failed: {side.problem}".replace(";", ","))
    else:
        volumes = side.volumes_mm3(scan)
        for part, volume in zip(PARTS, (*volumes, sum(volumes))):
            row[f"{part}_mm3"] = f"{volume:.1f}"
        row["quality"] = f"{side.quality:.3f}"
    return {**row, "flags": ";".join(row["flags"])}

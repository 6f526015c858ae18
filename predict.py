"""Segments both hippocampi of a head, anterior and posterior: any T1-weighted scan in, labels and volumes out.

    python predict.py head.nii.gz                  a whole head: .nii, .nii.gz, .mgz, ...; 4 s on two cores, each further one 2 s
    python predict.py scans more/head.mgz          files, and folders with all that lies in them
    python predict.py CD                           DICOM: a CD, a folder or a .zip file of series; a folder of CDs
    python predict.py /data/study                  a BIDS data set gives BIDS derivatives; docs/cluster.md is for many heads
    python predict.py BIDS_DIR OUT_DIR participant  the same, as the command of a BIDS App (the container's, see Dockerfile)
    python predict.py Task04_Hippocampus/imagesTs  crops of about 35 x 50 x 36 mm around one hippocampus
    python predict.py flair.nii.gz --contrast=any  another contrast than T1; by itself, predict.py chooses
    python predict.py head.nii.gz --etiv=1480000   your own intracranial volume in mm3; a CSV (scan, etiv_mm3) for many

Writes into OUT_DIR, on each input's own grid, in folders as those of the inputs:
  NAME_hippocampus.nii.gz  of a head: 1 left anterior, 2 left posterior, 3 right anterior, 4 right posterior
  NAME_seg.nii.gz          of a crop: 1 anterior, 2 posterior
  NAME_hippocampus.png     the picture to check it by: look at it before you use a number
  NAME_profile.tsv         with PROFILE: area of the cross-section at each mm of the long axis; for all: profiles.tsv
  NAME_uncertainty.nii.gz  with SAMPLES: predictive entropy and mutual information of each voxel, 0 to 1
  S4_T1.nii.gz             of a DICOM series: the converted scan, named after number and kind
  volumes.csv              a row for each scan and side: volumes in mm3, eTIV, quality, flags, adjusted volumes
  report.html              of more than one scan: the page to check them by, worst quality first
  adjustment.json          of ten heads or more: the slopes on eTIV that the adjusted volumes have
Of a BIDS data set they are sub-01/anat/sub-01_space-orig_seg-hippocampus_dseg.nii.gz and so on, volumes.tsv, figures/ and,
where people have several sessions, change.tsv.

Started again, it goes on where it stopped: a scan is done again if it failed or has changed. Any number of runs may share
OUT_DIR, at one time or one after the other: the table holds all scans, those of one name told apart by their folders.
Results of other settings are kept: OUT_DIR is renamed to OUT_DIR.previous-N first, unless another run is at work in it.

NOT FOR CLINICAL USE. Sides come from the header alone. The models learned from T1-weighted crops of one centre; where a
scan does not look T1-weighted, or the models for T1 find no hippocampus in it and the model for any contrast does,
its result is taken and flagged. A scan that is doubtful is flagged; one that cannot be done is a row with the flag
"failed: ...", a line, and exit code 2.
"""

import os
import sys
import time
from collections import Counter
from pathlib import Path

from hippo import __version__
from hippo.device import precision
from hippo.errors import UserError, fail, require
from hippo.options import configure, run_script
from hippo.segmenter import Segmenter, Settings
from hippo.study.batch import join, run_items
from hippo.study.bids import from_app, refuse_equal_names
from hippo.study.change import check_prefer
from hippo.study.dicom import choose, find_discs, listing
from hippo.study.inputs import find_items, find_t1, is_bids, lacks_description, left_out
from hippo.study.records import has_result, is_done, load_records, load_study, open_study, shard_of, was_begun
from hippo.study.sharing import leave
from hippo.study.volumes import etiv_of, load_adjustment, load_etivs

CHECKPOINT = "pretrained/heads_3d.pth"  # trained weights; last.pth and best_model.pth of any run fit as well
PARTNER = "pretrained/heads_2d.pth"  # a second one, averaged with the first; a 2D one on small crops only; empty: none
ANY_CONTRAST = "pretrained/any_contrast.pth"  # weights for what is not T1-weighted; empty: none
CONTRAST = "auto"  # t1, any (ANY_CONTRAST), or auto: any where t1 does not fit or finds nothing; own weights: t1
LOCATE = "pretrained/locate.pth"  # weights of the network that finds hippocampi in a head (train_locate.py)
OUT_DIR = "predictions"  # folder for results; results of other settings are kept as <name>.previous-N
PARTICIPANT_LABEL = ""  # of a BIDS data set: participants, as 01 or "['01', '02']"; empty: all
SESSION_LABEL = ""  # of a BIDS data set: sessions; empty: all
SERIES = ""  # of DICOM: numbers of the series to take, as 4 or "[4, 5]", or all; empty: T1-weighted heads in 3D
OVERWRITE = False  # do scans again whose results are there
SIDE = "auto"  # of a crop: left, right, or auto (the one that the models are surer of); heads need none
ETIV = ""  # your own intracranial volume in mm3, or a CSV with the columns scan, etiv_mm3; empty: the locator's
LABELS = "parts"  # parts (see above) or freesurfer (17 left and 53 right, the whole hippocampus)
PROBABILITIES = False  # write NAME_probabilities.nii.gz too: soft maps of each label, 0 to 1
PICTURES = True  # write the picture of each scan
LOW_QUALITY = 0.75  # a quality (the Dice to expect) below is flagged low_quality
LEAST_QUALITY = 0.5  # below it there is no result
ASYMMETRY = 0.25  # a difference of both hippocampi above this share of their mean is flagged asymmetric
USUAL_MM3 = [1500, 6000]  # a hippocampus outside is flagged implausible_volume
POSSIBLE_MM3 = [300, 12_000]  # outside there is no result
SAMPLES = 0  # of MC dropout, 20 for instance: write NAME_uncertainty.nii.gz and the spread of each volume; 0: none
SAMPLER = "pretrained/heads_dropout.pth"  # weights of a 3D model that was trained with --dropout, for SAMPLES
PROFILE = False  # write NAME_profile.tsv too: areas of cross-sections along the long axis; of a study profiles.tsv
PREFER = ""  # of several T1 of a session, the one that change.tsv uses: run-1, for instance; empty: the highest quality
ADJUSTMENT = ""  # adjustment.json of another study, for the adjusted volumes; empty: a fit to this one
WORKERS = 0  # scans at a time, each on its share of the cores; 0: one a core, or one on a GPU
SHARD = ""  # 3/100: every hundredth scan, from the third on; shards may run at once, --collect=True joins them
COLLECT = False  # only write the table and the page of what is in OUT_DIR
TTA = True  # average over shifted (and, where training flipped, mirrored) views
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 where it is fast, fp16 on older GPUs

_SETTINGS = ["contrast", "side", "labels", "probabilities", "pictures", "low_quality", "least_quality"]
_SETTINGS += ["asymmetry", "usual_mm3", "possible_mm3", "samples", "profile", "tta", "amp"]  # results depend on them


def main():
    argv = from_app(sys.argv[1:])
    cfg = configure(
        globals(),
        argv,
        inputs="scans (.nii, .nii.gz, .mgz, .mgh, .hdr), DICOM, folders and .zip files of them, or a BIDS data set",
    )
    if not run(cfg):
        sys.exit(2)


def run(cfg):
    """Predicts every input of a configuration. Returns whether all succeeded."""
    if cfg.collect:
        return collect(cfg)
    check(cfg)
    adjustment, (first, step) = load_adjustment(cfg.adjustment) if cfg.adjustment else {}, shard_of(cfg.shard)
    items, source, others = find_inputs(cfg)
    items = give_etivs(items, cfg.etiv)
    segmenter = Segmenter.load(**vars(Settings.of(cfg)))
    networks = segmenter.networks
    if networks.single_label:
        require(not cfg.probabilities, "--samples and --probabilities need a model of both parts")
        print(f"{cfg.checkpoint} tells no parts apart: --labels=freesurfer")
        cfg.labels = "freesurfer"
    settings = {name: getattr(cfg, name) for name in _SETTINGS}
    settings |= {"version": __version__, "weights": networks.checksums, "precision": precision(networks.dtype)}
    study = {"settings": settings, "bids": source, "adjustment": adjustment, "prefer": cfg.prefer}
    parts = cfg.shard or cfg.participant_label or cfg.session_label or cfg.series
    roots = [] if parts else [path for path in cfg.inputs if Path(path).is_dir()]
    items = open_study(cfg.out_dir, study, items, alone=not cfg.shard, left_out=others, roots=roots)
    if others:
        print(f"left out: {few([f'{path} ({why})' for path, why in others.items()])}")
    try:
        return segment_items(items[first::step], segmenter, cfg, bool(source))
    finally:
        leave(cfg.out_dir)


def segment_items(items, segmenter, cfg, in_bids):
    """Segments Items, writes the table, and prints a report. Returns whether all succeeded."""
    todo = [item for item in items if cfg.overwrite or not is_done(cfg.out_dir, item)]
    if len(todo) < len(items):
        print(f"{len(items) - len(todo)} of {len(items)} scans are there already; --overwrite=True does them again")
    todo.sort(key=lambda item: was_begun(cfg.out_dir, item))  # what may have ended a process comes last
    start = time.perf_counter()
    try:
        if todo:
            run_items(todo, segmenter, cfg, in_bids)
    finally:
        records = load_records(cfg.out_dir) if cfg.shard else join(cfg.out_dir)
    seconds = (time.perf_counter() - start) / max(len(todo), 1)
    names = {item.name for item in items}
    went_well = report(cfg, [record for record in records if record["name"] in names], f" ({seconds:.2f} s a scan)")
    lost = sorted(names - {record["name"] for record in records})
    if lost:
        text = (
            f"no record of {few(lost)} in {cfg.out_dir}; was the folder changed meanwhile? Start the same command again"
        )
        fail(UserError(text))
    return went_well and not lost


def few(texts):
    """Returns the first three of some texts, and how many more there are."""
    return ", ".join(texts[:3]) + (f", and {len(texts) - 3} more" if len(texts) > 3 else "")


def collect(cfg):
    """Joins the results in the results folder. Returns whether all scans are there and succeeded."""
    check_prefer(cfg.prefer, load_study(cfg.out_dir)["scans"])
    records = join(cfg.out_dir, load_adjustment(cfg.adjustment) if cfg.adjustment else None, cfg.prefer)
    scans = load_study(cfg.out_dir)["scans"]
    missing = sorted(set(scans) - {record["name"] for record in records})
    if missing:
        fail(UserError(f"{len(missing)} of {len(scans)} scans are not done: {few(missing)}; start their shards again"))
    return report(cfg, records) and not missing


def report(cfg, records, timing=""):
    """Prints a report on the scans of some records. Returns whether all succeeded."""
    done = sum(map(has_result, records))
    table = (
        "" if cfg.shard else " and volumes.tsv" if (Path(cfg.out_dir) / "volumes.tsv").is_file() else " and volumes.csv"
    )
    print(f"{done} segmentation{'s' * (done != 1)}{table} in {cfg.out_dir}{timing}")
    failures = [row for record in records for row in record["rows"] if "failed: " in row["flags"]]
    for row in failures:
        reason = row["flags"].split("failed: ", 1)[1]
        fail(UserError(f"{row['scan']}: {reason}"))
    return not failures


def check(cfg):
    """Raises UserError for options that are invalid or contradict each other."""
    Settings.of(cfg).check()
    require(cfg.workers >= 0, f"--workers={cfg.workers}: expected a number of processes, or 0")


def find_inputs(cfg):
    """Returns (the Items of a configuration, the BIDS data set that they belong to, else empty, {file: reason} of what
    is left out)."""
    require(cfg.inputs, "no input: give scans or folders, as in: python predict.py head.nii.gz")
    out_dir = Path(cfg.out_dir).resolve()
    for path in map(Path, cfg.inputs):
        inside = out_dir in (path.resolve(), *path.resolve().parents)
        require(not inside, f"{path} lies in {cfg.out_dir}, the folder for results; choose another --out_dir")
    studies = [path for path in cfg.inputs if is_bids(path)]
    if not studies:
        some = next((name for name in ("participant_label", "session_label", "prefer") if getattr(cfg, name)), "")
        require(not some, f"--{some} is for a BIDS data set, a folder with dataset_description.json")
        for path in filter(lacks_description, cfg.inputs):
            print(
                f"{path}: no dataset_description.json, so every image in it is taken; with this file only T1w, as a BIDS data set"
            )
        chosen = choose(find_discs(cfg.inputs, out_dir), cfg.series)
        if text := listing(chosen):
            print(text)
        return find_items(cfg.inputs, out_dir, chosen), "", left_out(cfg.inputs, out_dir, chosen)
    require(len(cfg.inputs) == 1, f"{studies[0]} is a BIDS data set; give it alone, the others in a run of their own")
    items = find_t1(studies[0], cfg.participant_label, cfg.session_label)
    check_prefer(cfg.prefer, [item.name for item in items])
    return refuse_equal_names(items), str(Path(studies[0]).resolve()), left_out(cfg.inputs, out_dir)


def give_etivs(items, text):
    """Returns the Items with the eTIV given by the option --etiv: one number for all, or a CSV that names scans by
    path (as given, or relative to the searched folder) or, if it is unique, by file name."""
    if not text:
        return items
    if not text.lower().endswith(".csv"):
        value = etiv_of(text, f"--etiv={text}")
        return [item._replace(etiv_mm3=value) for item in items]
    values = load_etivs(text)
    count = Counter(item.path.name for item in items)
    result = []
    for item in items:
        name = item.path.name
        full = (
            item.path.as_posix(),
            Path(item.label).as_posix(),  # of a series
            item.name,
            str(Path(item.name).parent / name),
            Path(os.path.abspath(item.path)).as_posix(),
        )
        own = next((values[path] for path in full if path in values), values.get(name) if count[name] == 1 else None)
        result.append(item._replace(etiv_mm3=own))
    without = sum(item.etiv_mm3 is None for item in result)
    require(without < len(items), f"--etiv={text}: none of its scans is among these; expected such as {items[0].path}")
    if without:
        print(f"{without} of {len(items)} scans are not in {text}: their eTIV is the network's")
    return result


if __name__ == "__main__":
    run_script(main)

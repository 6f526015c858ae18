"""Segments both hippocampi of a head, anterior and posterior: any T1-weighted scan in, labels and volumes out.

    python predict.py head.nii.gz                  a whole head: .nii, .nii.gz or .mgz; 2 s on two cores with bf16
    python predict.py scans more/head.mgz          folders and files; a bad one is reported, the others are done
    python predict.py Task04_Hippocampus/imagesTs  crops of about 35 x 50 x 36 mm around one hippocampus
    python predict.py flair.nii.gz --contrast=any  another contrast than T1; by itself, predict.py chooses
    python predict.py head.nii.gz --etiv=1480000   your own intracranial volume in mm3; a CSV (scan, etiv_mm3) for many

Writes into OUT_DIR, on each input's own grid:
  NAME_hippocampus.nii.gz  of a head: 1 left anterior, 2 left posterior, 3 right anterior, 4 right posterior
  NAME_seg.nii.gz          of a crop: 1 anterior, 2 posterior
  NAME_hippocampus.png     the picture to check it by: look at it before you use a number
  NAME_uncertainty.nii.gz  with SAMPLES: predictive entropy and mutual information of each voxel, 0 to 1
  volumes.csv              a row for each scan and side: volumes in mm3, eTIV, quality, flags

NOT FOR CLINICAL USE. Sides come from the header alone. The models learned from T1-weighted crops of one centre; where a
scan does not look T1-weighted, or the model for any contrast sees another hippocampus and more is to be expected of it,
its result is taken and flagged. A scan that is doubtful is flagged; one that cannot be done is a row with the flag
"failed: ...", a line, and exit code 2.
"""

import contextlib
import csv
import sys
import time
from pathlib import Path

from hippo.data.cases import GET_DATA, case_id, list_volumes
from hippo.data.nifti import is_dicom, is_phantom, save_labels, save_like, to_stored_orientation
from hippo.device import set_up_device
from hippo.errors import UserError, fail, require
from hippo.files import atomic, fresh_folder
from hippo.heads.locate import load_locator
from hippo.heads.quality import Limits, judge
from hippo.heads.scan import read_scan
from hippo.heads.segment import joint_labels, joint_probabilities, segment
from hippo.heads.uncertainty import sample_scan
from hippo.models.checkpoint import load_model
from hippo.models.inference import has_dropout
from hippo.options import configure, run_script
from hippo.pictures.check import picture_of_scan

import numpy as np
from tqdm import tqdm

CHECKPOINT = "pretrained/heads_3d.pth"  # trained weights; last.pth and best_model.pth of any run fit as well
PARTNER = "pretrained/heads_2d.pth"  # a second one, averaged with the first; empty: none
ANY_CONTRAST = "pretrained/any_contrast.pth"  # weights for what is not T1-weighted; empty: none
CONTRAST = "auto"  # t1, any (ANY_CONTRAST), or auto: any where more is to be expected of it; own weights: t1
LOCATE = "pretrained/locate.pth"  # weights of the network that finds hippocampi in a head (train_locate.py)
OUT_DIR = "predictions"  # folder for results; one that holds results is kept as <name>.previous-N
SIDE = "auto"  # of a crop: left, right, or auto (the one that the models are surer of); heads need none
MIRROR = False  # an older way to say --side=right
ETIV = ""  # your own intracranial volume in mm3, or a CSV with the columns scan, etiv_mm3; empty: the locator's
LABELS = "parts"  # parts (see above) or freesurfer (17 left and 53 right, the whole hippocampus)
PROBABILITIES = False  # write NAME_probabilities.nii.gz too: soft maps of each label, 0 to 1
PICTURES = True  # write the picture of each scan
LOW_QUALITY = 0.85  # a quality (the Dice to expect) below is flagged low_quality
LEAST_QUALITY = 0.5  # below it there is no result
ASYMMETRY = 0.25  # a difference of both hippocampi above this share of their mean is flagged asymmetric
USUAL_MM3 = [1500, 6000]  # a hippocampus outside is flagged implausible_volume
POSSIBLE_MM3 = [300, 12_000]  # outside there is no result
SAMPLES = 0  # of MC dropout, 20 for instance: write NAME_uncertainty.nii.gz and the spread of each volume; 0: none
SAMPLER = ""  # weights of a 3D model that was trained with --dropout, for SAMPLES
TTA = True  # average over shifted (and, where training flipped, mirrored) views
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1
AMP = True  # mixed precision: fp16 on CUDA, bf16 on a CPU that has it

_COLUMNS = ["scan", "side", "anterior_mm3", "posterior_mm3", "total_mm3", "etiv_mm3"]
_COLUMNS += ["quality", "flags", "seconds", "model"]
_SPREADS = ["anterior_sd_mm3", "posterior_sd_mm3", "total_sd_mm3"]  # further columns, with SAMPLES
_DESCRIPTIONS = {
    ("parts", False): "L anterior 1, posterior 2; R anterior 3, posterior 4",
    ("parts", True): "hippocampus: 1 anterior, 2 posterior",
}


def main():
    cfg = configure(globals(), inputs="scans (.nii, .nii.gz, .mgz), or folders of them")
    if not run(cfg):
        sys.exit(2)


def run(cfg):
    """Predicts every input of a configuration; returns whether all went well."""
    require(cfg.side in ("auto", "left", "right"), f"--side={cfg.side}: expected auto, left or right")
    require(cfg.contrast in ("auto", "t1", "any"), f"--contrast={cfg.contrast}: expected auto, t1 or any")
    require(cfg.any_contrast or cfg.contrast != "any", "--contrast=any needs weights: give --any_contrast=FILE")
    require(cfg.labels in ("parts", "freesurfer"), f"--labels={cfg.labels}: expected parts or freesurfer")
    require(not (cfg.mirror and cfg.side == "left"), "--mirror=True and --side=left contradict each other; give --side")
    side = "right" if cfg.mirror else cfg.side
    etivs = read_etivs(cfg.etiv)
    files, problems = find_inputs(cfg.inputs)
    require(files or problems, "no input: give scans or folders, as in: python predict.py head.nii.gz")
    check_out_dir(cfg.out_dir, files)
    device, dtype = set_up_device(cfg.device, cfg.amp)
    models, any_contrast, synthetic = load_models(cfg, device)
    models = models, load_locator(cfg.locate).to(device), any_contrast, load_sampler(cfg, models[0], device)
    names = "+".join(Path(path).name for path in (cfg.checkpoint, cfg.partner) if path)
    out_dir, start = fresh_folder(cfg.out_dir), time.perf_counter()
    rows = [failed(path, error, names) for path, error in problems]
    try:
        for path in tqdm(files, desc="predict", disable=None):
            try:
                scan_rows = predict_scan(path, models, cfg, out_dir, (device, dtype), etivs, synthetic, side)
                rows += [{**row, "model": names_of(row, names, cfg)} for row in scan_rows]
            except UserError as error:
                rows.append(failed(path, error, names))
    finally:
        write_rows(out_dir / "volumes.csv", rows, cfg.samples > 0)
    seconds = (time.perf_counter() - start) / max(len(files), 1)
    done = len({row["scan"] for row in rows if row["total_mm3"]})
    print(f"{done} segmentations and volumes.csv in {out_dir} ({seconds:.2f} s a scan)")
    failures = [row for row in rows if "failed: " in row["flags"]]
    for row in failures:
        reason = row["flags"].split("failed: ", 1)[1]
        fail(UserError(f"{row['scan']}: {reason}"))
    return not failures


def predict_scan(path, models, cfg, out_dir, place, etivs, synthetic, side):
    """Segments a scan and writes its files; returns its rows. Raises UserError, see scan.read_scan.

    models: (list of TrainedModel, the locator, the TrainedModels for any contrast and for samples, or None).
    """
    start = time.perf_counter()
    scan, (models, locator, any_contrast, sampler) = read_scan(path), models
    # the models are unsure of phantoms: they have seen none, or only those
    strict = not (synthetic or is_phantom(scan.image))
    # the comparison of models is for the shipped ones
    compared = strict and Path(cfg.checkpoint).name == Path(CHECKPOINT).name
    other = (any_contrast, cfg.contrast) if compared or cfg.contrast == "any" else (None, "t1")
    sides, located = segment(models, locator, scan, *place, cfg.tta, side, *other)
    sides = judge(sides, scan, limits_of(cfg), strict)
    etiv, etiv_flags = (located.etiv_mm3, located.flags) if located else (None, [])
    own = etivs.get(path.name, etivs.get(case_id(path), etivs.get("")))
    etiv = etiv if own is None else own
    etiv_flags = [flag for flag in etiv_flags if own is None or flag != "etiv_implausible"]
    name, spreads = case_id(path), [[]] * len(sides)
    if not all(side.problem for side in sides):
        save_maps(out_dir / name, scan, sides, cfg, synthetic)
    if sampler:
        maps, spreads = sample_scan(sampler, scan, sides, cfg.samples, *place)
        target = out_dir / f"{name}_uncertainty.nii.gz"
        maps = to_stored_orientation(maps, scan.image)
        save_like(target, maps, scan.image, "predictive entropy, mutual information; 0 to 1", 1.0, synthetic)
    seconds = time.perf_counter() - start
    rows = [make_row(path, scan, side, etiv, etiv_flags, seconds) for side in sides]
    for row, deviations in zip(rows, spreads):
        row |= {column: f"{value:.1f}" for column, value in zip(_SPREADS, deviations)}
    if cfg.pictures:
        picture_of_scan(out_dir / f"{name}_hippocampus.png", scan, sides, rows)
    return rows


def save_maps(target, scan, sides, cfg, synthetic):
    """Writes the labels of a scan, and its soft maps where they are asked for, to files whose names begin with target."""
    labels = to_stored_orientation(joint_labels(sides, scan, cfg.labels == "freesurfer"), scan.image)
    description = _DESCRIPTIONS.get((cfg.labels, scan.is_crop), "17 left, 53 right hippocampus")
    kind = "seg" if scan.is_crop else "hippocampus"
    save_labels(f"{target}_{kind}.nii.gz", labels, scan.image, description, synthetic)
    if cfg.probabilities:
        soft = np.round(255 * joint_probabilities(sides, scan)).astype(np.uint8)
        soft = to_stored_orientation(soft, scan.image)
        save_like(f"{target}_probabilities.nii.gz", soft, scan.image, description, 1 / 255, synthetic)


def limits_of(cfg):
    """The Limits of a configuration."""
    return Limits(*(getattr(cfg, name) for name in Limits._fields))


def make_row(path, scan, side, etiv, flags, seconds):
    """The row of volumes.csv of one side of a scan."""
    row = dict.fromkeys(_COLUMNS, "") | {"scan": str(path), "side": side.side, "seconds": f"{seconds:.2f}"}
    row["flags"] = [*scan.flags, *flags, *side.flags]
    row["etiv_mm3"] = "" if etiv is None else f"{etiv:.0f}"
    if side.problem:
        row["flags"].append(f"failed: {side.problem}".replace(";", ","))
    else:
        volumes = side.volumes_mm3(scan)
        for column, volume in zip(_COLUMNS[2:5], (*volumes, sum(volumes))):
            row[column] = f"{volume:.1f}"
        row["quality"] = f"{side.quality:.3f}"
    return {**row, "flags": ";".join(row["flags"])}


def names_of(row, names, cfg):
    """The names of the weights that gave a row."""
    return Path(cfg.any_contrast).name if "any_contrast" in row["flags"].split(";") else names


def failed(path, error, names):
    """The row of volumes.csv of an input that could not be done."""
    reason = str(error).removeprefix(f"{path}: ").replace(";", ",").replace("\n", " ")
    return dict.fromkeys(_COLUMNS, "") | {"scan": str(path), "flags": f"failed: {reason}", "model": names}


def write_rows(path, rows, spreads=False):
    """Writes volumes.csv; spreads: with the standard deviations of samples."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS + _SPREADS * spreads)
        writer.writeheader()
        writer.writerows(rows)


def read_etivs(text):
    """{name of a scan: eTIV in mm3} of the option --etiv; a single number counts for every scan, under the name ""."""
    if not text:
        return {}
    try:
        if not text.lower().endswith(".csv"):
            values = {"": float(text)}
        else:
            with open(text, newline="", encoding="utf-8-sig") as file:
                values = {Path(row["scan"]).name: float(row["etiv_mm3"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--etiv={text}: expected a number of mm3, or a CSV with the columns scan, etiv_mm3 ({error!r})"
        ) from None
    wrong = [value for value in values.values() if not 1e5 <= value <= 1e7]
    require(not wrong, f"--etiv={text}: {wrong[:1]} is no intracranial volume in mm3; expected about 1500000")
    return values


def load_models(cfg, device):
    """(models on the device, the one for any contrast or None, whether one of them was trained on phantoms)."""
    models, synthetic = [], False
    require(cfg.checkpoint, "--checkpoint=: expected a checkpoint")
    paths = [path for path in (cfg.checkpoint, cfg.partner, cfg.any_contrast) if path]
    for path in paths:
        trained, info = load_model(path)
        models.append(trained.to(device))
        if info.get("synthetic"):
            synthetic = True
            print(f"{path} was trained on SYNTHETIC phantoms: its results say nothing about real scans")
    for path, trained in zip(paths, models):
        same = trained.preprocessing["spacing_mm"] == models[0].preprocessing["spacing_mm"]
        require(same, f"{path}: trained on another spacing than {cfg.checkpoint}; use one of them alone")
    any_contrast = models.pop() if cfg.any_contrast else None
    return models, any_contrast, synthetic


def load_sampler(cfg, first, device):
    """The TrainedModel for samples on the device, or None without samples."""
    if not cfg.samples:
        return None
    require(cfg.samples > 1, f"--samples={cfg.samples}: expected 2 or more, or 0 for none")
    require(cfg.sampler, "--samples needs a 3D model that was trained with --dropout; give --sampler=FILE")
    sampler = load_model(cfg.sampler)[0]
    same = sampler.preprocessing["spacing_mm"] == first.preprocessing["spacing_mm"]
    require(same, f"{cfg.sampler}: trained on another spacing than {cfg.checkpoint}")
    require(has_dropout(sampler), f"{cfg.sampler}: expected a 3D model that was trained with --dropout")
    return sampler.to(device)


def check_out_dir(out_dir, files):
    """Raises UserError where an input lies in the folder for results."""
    for path in files:
        require(
            Path(out_dir).resolve() not in path.resolve().parents,
            f"{path} lies in {out_dir}, the folder for results; choose another --out_dir",
        )


def find_inputs(inputs):
    """(files of the inputs and of the folders among them, [(path, UserError)] of the inputs that cannot be used)."""
    files, problems = {}, []
    for item in map(Path, inputs):
        found = list_volumes(item) if item.is_dir() else [item]
        if not found:
            problems.append((item, UserError(f"{item}: {why_empty(item)}")))
        if not item.exists() and item.name in ("imagesTr", "imagesTs"):
            problems.append((item, UserError(f"{item}: no such folder; get data with: {GET_DATA}")))
            continue
        for path in found:
            earlier = files.setdefault(case_id(path).casefold(), path)  # Windows and macOS ignore case in names
            if earlier.resolve() != path.resolve():
                text = f"{path}: {earlier} has the same name and would have the same result file; predict it in a run "
                problems.append((path, UserError(text + "of its own")))
    return list(files.values()), problems


def why_empty(folder):
    """What to say of a folder without scans."""
    with contextlib.suppress(OSError):  # a file that cannot be read
        if any(path.is_file() and is_dicom(path) for path in folder.rglob("*")):
            return f"DICOM files; convert them first, and then predict the new folder: dcm2niix -z y -o FOLDER {folder}"
    return "no .nii.gz, .nii or .mgz files in this folder; name the folder that holds the scans"


if __name__ == "__main__":
    run_script(main)

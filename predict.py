"""Segments MRI crops around a hippocampus with a trained checkpoint.

    python predict.py scan.nii.gz                      one file, with the model that comes with the repository
    python predict.py Task04_Hippocampus/imagesTs      every .nii.gz of a folder; several files and folders may be given
    python predict.py scan.nii.gz --checkpoint=results_hippocampus-3D/last.pth --tta=False
    python predict.py scan.nii.gz --checkpoint=one.pth --partner=another.pth      the average of two models, 3D or 2D

Writes into OUT_DIR: <name>_seg.nii.gz on the input's own grid (0 background, 1 anterior, 2 posterior), and
volumes.csv in mm3. Each scan is brought to the orientation (RAS) and spacing (1 mm) of the training data, and the
result back. A scan must be what the model was trained on: a T1-weighted crop of about 35 x 50 x 36 mm around ONE
hippocampus, on the side that the training crops show; --mirror is for the other side. About 0.2 s a volume on two CPU
cores. A bad file is reported, the others are done, and the exit code is 2.
"""

import contextlib
import csv
import sys
import time
from pathlib import Path

from hippo.data.cases import GET_DATA, LABELS, case_id, list_volumes
from hippo.data.nifti import is_dicom, save_labels, voxel_volume_mm3
from hippo.device import set_up_device
from hippo.errors import UserError, fail, require
from hippo.files import atomic, fresh_folder
from hippo.heads.segment import segment
from hippo.models.checkpoint import load_model
from hippo.options import configure, run_script

import numpy as np
from tqdm import tqdm

CHECKPOINT = "pretrained/hippocampus_3d.pth"  # trained weights; last.pth and best_model.pth of any run fit as well
PARTNER = ""  # a second checkpoint, whose probabilities are averaged with the first one's; empty: none
OUT_DIR = "predictions"  # folder for results; one that holds results is kept as <name>.previous-N
TTA = True  # average over shifted (and, where training flipped, mirrored) views of the volume
MIRROR = False  # mirror left and right before and after: for a hippocampus on the other side
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1
AMP = True  # mixed precision: fp16 on CUDA, bf16 on a CPU that has it


def main():
    cfg = configure(globals(), inputs="NIfTI files, or folders of them")
    if not run(cfg):
        sys.exit(2)


def run(cfg):
    """Predicts every input of a configuration; returns whether all went well."""
    files, problems = find_inputs(cfg.inputs)
    require(files or problems, "no input: give NIfTI files or folders, as in: python predict.py scan.nii.gz")
    check_out_dir(cfg.out_dir, files)
    device, dtype = set_up_device(cfg.device, cfg.amp)
    members, synthetic = load_members(cfg, device)
    made, rows, start = None, [], time.perf_counter()
    for path in tqdm(files, desc="predict", disable=None):
        try:
            labels, image = segment(members, path, device, dtype, cfg.tta, cfg.mirror)
        except UserError as error:
            problems.append(error)
            continue
        made = made or fresh_folder(cfg.out_dir)
        save_labels(made / f"{case_id(path)}_seg.nii.gz", labels, image, synthetic)
        volumes = [np.count_nonzero(labels == label) * voxel_volume_mm3(image) for label in LABELS]
        rows.append([str(path), *(f"{v:.1f}" for v in (*volumes, sum(volumes)))])
    if rows:
        with atomic(made / "volumes.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["file", *(f"{name}_mm3" for name in LABELS.values()), "total_mm3"], *rows])
        seconds = (time.perf_counter() - start) / len(files)
        print(f"{len(rows)} segmentations and volumes.csv in {made} ({seconds:.2f} s a volume)")
    for error in problems:
        fail(error)
    return not problems


def load_members(cfg, device):
    """(models on the device, whether one of them was trained on phantoms)."""
    members, synthetic = [], False
    for path in filter(None, [cfg.checkpoint, cfg.partner]):
        trained, info = load_model(path)
        members.append(trained.to(device))
        if info.get("synthetic"):
            synthetic = True
            print(f"{path} was trained on SYNTHETIC phantoms: its results say nothing about real scans")
    require(members, "--checkpoint=: expected a checkpoint")
    spacings = {trained.preprocessing["spacing_mm"] for trained in members}
    require(
        len(spacings) == 1, f"{cfg.partner}: trained on another spacing than {cfg.checkpoint}; use one of them alone"
    )
    return members, synthetic


def check_out_dir(out_dir, files):
    """Raises UserError where an input lies in the folder for results."""
    for path in files:
        require(
            Path(out_dir).resolve() not in path.resolve().parents,
            f"{path} lies in {out_dir}, the folder for results; choose another --out_dir",
        )


def find_inputs(inputs):
    """(NIfTI files of the inputs and of the folders among them, UserErrors for the inputs that cannot be used)."""
    files, problems = {}, []
    for item in map(Path, inputs):
        found = list_volumes(item) if item.is_dir() else [item]
        if not found:
            problems.append(UserError(f"{item}: {why_empty(item)}"))
        if not item.exists() and item.name in ("imagesTr", "imagesTs"):
            problems.append(UserError(f"{item}: no such folder; get data with: {GET_DATA}"))
            continue
        for path in found:
            earlier = files.setdefault(case_id(path).casefold(), path)  # Windows and macOS ignore case in names
            if earlier.resolve() != path.resolve():
                problems.append(
                    UserError(
                        f"{path}: {earlier} has the same name and would have the same result file; predict it in a run "
                        "of its own"
                    )
                )
    return list(files.values()), problems


def why_empty(folder):
    """What to say of a folder without NIfTI files."""
    with contextlib.suppress(OSError):  # a file that cannot be read
        if any(path.is_file() and is_dicom(path) for path in folder.rglob("*")):
            return f"DICOM files; convert them first, and then predict the new folder: dcm2niix -z y -o FOLDER {folder}"
    return "no .nii.gz or .nii files in this folder; name the folder that holds the volumes"


if __name__ == "__main__":
    run_script(main)

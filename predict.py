"""Segments MRI crops around a hippocampus with a trained checkpoint.

    python predict.py scan.nii.gz                      one file, with the model that comes with the repository
    python predict.py Task04_Hippocampus/imagesTs      every .nii.gz of a folder; several files and folders may be given
    python predict.py scan.nii.gz --checkpoint=results_hippocampus-3D/last.pth --tta=False
    python predict.py scan.nii.gz --checkpoint=one.pth --partner=another.pth      the average of two models, 3D or 2D

Writes into OUT_DIR: <name>_seg.nii.gz on the input's own grid (0 background, 1 anterior, 2 posterior), and
volumes.csv in mm3. Each scan is brought to the orientation (RAS) and spacing (1 mm) of the training data and the
result back. Expected is what the model was trained on: a T1-weighted crop of about 35 x 50 x 36 mm around ONE
hippocampus, on the side that the training crops show; for the other side use --mirror=True. About 0.2 s a volume on
two CPU cores. A bad file is reported, the others are done, the exit code is 2.
"""

import csv
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

import model2d
import unet_inr_3d
from blocks import count_parameters
from common import UserError, atomic, configure, fail, fresh_folder, load_checkpoint, pick_device, require, run_script
from dataset import case_id, list_volumes
from evaluation import predict_volume
from metrics import LABELS, volume_mm3
from nifti import normalise, read_nifti, resample, spacing_mm

CHECKPOINT = "pretrained/hippocampus_3d.pth"  # trained weights; last.pth and best_model.pth of any run fit as well
PARTNER = ""  # a second checkpoint, whose probabilities are averaged with the first one's; empty: none
OUT_DIR = "predictions"  # folder for results; one that holds results is kept as <name>.previous-N
TTA = True  # average over shifted (and, where training flipped, mirrored) views of the volume
MIRROR = False  # mirror left and right before and after: for a hippocampus on the other side
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1
AMP = True  # mixed precision: fp16 on CUDA, bf16 on a CPU that has it

_MODEL_SPACING_MM = 1.0
MODELS = {**unet_inr_3d.MODELS, **model2d.MODELS}
_SIDE_MM = (12, 100)  # shorter or longer than this along any axis is no crop around one hippocampus


def main():
    cfg = configure(globals(), inputs="NIfTI files, or folders of them")
    if not run(cfg):
        sys.exit(2)


def run(cfg):
    """Predicts every input of a configuration; returns whether all went well."""
    files, problems = find_inputs(cfg.inputs)
    require(files or problems, "no input: give NIfTI files or folders, as in: python predict.py scan.nii.gz")
    out_dir = Path(cfg.out_dir).resolve()
    for path in files:
        require(
            out_dir not in path.resolve().parents,
            f"{path} lies in {cfg.out_dir}, the folder for results; choose another --out_dir",
        )
    device, dtype = pick_device(cfg.device, cfg.amp)
    models, synthetic = [], False
    for path in [cfg.checkpoint, *([cfg.partner] if cfg.partner else [])]:
        model, info = load_model(path)
        models.append(model.to(device))
        if info.get("synthetic"):
            synthetic = True
            print(f"{path} was trained on SYNTHETIC phantoms: its results say nothing about real scans")
    made, rows, start = None, [], time.perf_counter()
    for path in tqdm(files, desc="predict", disable=None):
        try:
            segmentation, image = segment(models, path, device, dtype, cfg.tta, cfg.mirror)
        except UserError as error:
            problems.append(error)
            continue
        made = made or fresh_folder(cfg.out_dir)
        save_segmentation(made / f"{case_id(path)}_seg.nii.gz", segmentation, image, synthetic)
        zooms = nib.affines.voxel_sizes(image.affine)
        volumes = [volume_mm3(segmentation == label, zooms) for label in LABELS]
        rows.append([str(path), *(f"{v:.1f}" for v in (*volumes, sum(volumes)))])
    if rows:
        with atomic(made / "volumes.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["file", *(f"{name}_mm3" for name in LABELS.values()), "total_mm3"], *rows])
        seconds = (time.perf_counter() - start) / len(files)
        print(f"{len(rows)} segmentations and volumes.csv in {made} ({seconds:.2f} s a volume)")
    for error in problems:
        fail(error)
    return not problems


def find_inputs(inputs):
    """The NIfTI files among the inputs, folders opened; and a list of UserErrors for what is missing, empty or of a
    name met before.
    """
    files, problems = {}, []
    for item in map(Path, inputs):
        found = list_volumes(item) if item.is_dir() else [item]
        if not found:
            problems.append(
                UserError(f"{item}: no .nii.gz or .nii files in this folder; name the folder that holds the volumes")
            )
        for path in found:
            earlier = files.setdefault(case_id(path).casefold(), path)  # one file on Windows and macOS
            if earlier.resolve() != path.resolve():
                problems.append(
                    UserError(
                        f"{path}: {earlier} has the same name and would have the same result file; predict it in a run of its own"
                    )
                )
    return list(files.values()), problems


def load_model(path):
    """(model in eval mode, checkpoint without its weights). Raises UserError for a checkpoint of another kind of model.

    The file is not trusted: the network is built without memory first, and only if the file is large enough to hold it.
    """
    info = load_checkpoint(path, "python train_3d.py or python train2d.py; a shipped one: git checkout pretrained")
    try:
        weights, name, args = info.pop("model_state_dict"), info["model"]["name"], info["model"]["args"]
        limits = {"depth": 10, "unet_depth": 10, "convs": 4, "inr_chunk": 0}
        if not all(0 <= value <= limits.get(key, 1024) for key, value in args.items()):
            raise ValueError(f"a {name} of {args}")
        with torch.device("meta"):
            model = MODELS[name](**args)
        if (model.in_channels, model.head.out_channels) != (1, 3):
            raise ValueError("expected 1 channel in and 3 out")
        if count_parameters(model) > Path(path).stat().st_size:
            raise ValueError(f"a file too small for a {name} of {args}")
        model.load_state_dict(weights, assign=True)
        if not all(v.is_floating_point() and torch.isfinite(v).all() for v in weights.values()):
            raise ValueError("weights that are not finite numbers")
        model.float()
        model.slice_size = info.get("slice_size", model.slice_size)
        if not (isinstance(model.slice_size, int) and 8 <= model.slice_size <= 1024):
            raise ValueError("slice_size")
        model.flip_axes = axes = info.get("flip_axes", "")
        if not isinstance(axes, str) or sorted(axes) != sorted(set(axes) & set("xyz")):
            raise ValueError("flip_axes")
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path}: a checkpoint of another model ({(str(error) or type(error).__name__).splitlines()[0]}); "
            f"expected one of {', '.join(MODELS)}, as train_3d.py and train2d.py write"
        ) from None
    return model.eval(), info


def segment(model, path, device, dtype, tta=True, mirror=False):
    """(label map uint8 on the file's own grid, nibabel image) of one NIfTI file, by a model or a list of them. Raises
    UserError, see nifti.read_nifti.
    """
    array, image = read_nifti(path)
    spacing = np.array(spacing_mm(image))
    require(spacing.min() >= 0.1, f"{path}: a spacing of {spacing.min():g} mm; expected 0.1 mm or more: resample it")
    sides = spacing * array.shape
    require(
        _SIDE_MM[0] <= sides.min() and sides.max() <= _SIDE_MM[1],
        f"{path}: {' x '.join(f'{s:.0f}' for s in sides)} mm is no crop around one hippocampus; expected about 35 x 50 x 36 mm: crop the scan first",
    )
    require(array.min() < array.max(), f"{path}: every voxel has the same value; expected an MRI crop: export it again")
    if mirror:
        array = array[::-1]
    shape = np.maximum(np.round(sides / _MODEL_SPACING_MM), 1).astype(int)
    probabilities = (
        predict_volume(model, normalise(resample(array.astype(np.float32), shape)), device, dtype, tta).cpu().numpy()
    )
    if tuple(shape) != array.shape:
        probabilities = np.stack([resample(p, array.shape) for p in probabilities])
    segmentation = probabilities.argmax(0).astype(np.uint8)
    if mirror:
        segmentation = segmentation[::-1]
    to_ras = nib.io_orientation(image.affine)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), to_ras)
    return np.ascontiguousarray(nib.apply_orientation(segmentation, back)), image


def save_segmentation(path, segmentation, image, synthetic):
    """Writes a label map with the affine, the header's codes and the grid of the input image."""
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0
    synthetic = synthetic or b"SYNTHETIC" in header["descrip"].item()
    header["descrip"] = b"hippocampus: 1 anterior, 2 posterior" + (b" (SYNTHETIC data)" if synthetic else b"")
    with atomic(path) as temporary:
        nib.save(type(image)(segmentation, image.affine, header), temporary)


if __name__ == "__main__":
    run_script(main)

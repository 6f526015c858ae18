"""Cuts labelled crops from whole heads: a Decathlon folder to train or fine-tune on.

    python crops.py /data/study --masks=/data/study/derivatives/masks
    python train_3d.py --data_root=crops --init=pretrained/heads_3d.pth --out_dir=results_mine-3D

/data/study is a BIDS data set; MASKS has, for each scan, a mask of the left and one of the right hippocampus below
sub-01/ (or sub-01/ses-1/), whose names fit LEFT and RIGHT. A crop is the window of 36 x 52 x 36 voxels of 1 mm through which
predict.py looks at a hippocampus, turned as the training's crops; right ones are mirrored, so that all look like left ones.

Writes into OUT_DIR: imagesTr/, labelsTr/, dataset.json (with the person of each crop, so that the sides and sessions of a person
stay on one side of a split), and crops.csv: which scan each crop is of, and the share of its mask that it holds. A crop that
holds less than LEAST_INSIDE of its mask is left out, and said. About 1 s a head on two cores.
"""

import csv
import sys
from pathlib import Path

from hippo.data.formats import has_ending
from hippo.data.nifti import read_nifti
from hippo.errors import UserError, fail, require
from hippo.files import atomic, fresh_folder, save_json
from hippo.heads.anatomy import SIDES
from hippo.heads.scan import read_scan
from hippo.heads.window import cut
from hippo.options import configure, run_script
from hippo.segmenter import Segmenter
from hippo.study.inputs import find_t1, is_bids

import nibabel as nib
import numpy as np
from tqdm import tqdm

OUT_DIR = "crops"  # folder to write; one that holds something is kept as <name>.previous-N
MASKS = ""  # folder with the masks, see above
LEFT = "*hemi-L*mask*"  # names of the left masks, by *, ? and []; endings .nii, .nii.gz or .mgz
RIGHT = "*hemi-R*mask*"  # and of the right ones
PARTS = False  # the masks have 1 anterior and 2 posterior; else a voxel counts from half of the largest value on
VALIDATION = ""  # participants that validate, as "['19', '20']"; empty: as the training script's FOLD says
PARTICIPANT_LABEL = ""  # participants to take; empty: all
SESSION_LABEL = ""  # sessions to take; empty: all
LEAST_INSIDE = 0.98  # share of a mask that its crop has to hold
CHECKPOINT = "pretrained/heads_3d.pth"  # weights that find the window
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 where it is fast, fp16 on older GPUs


def main():
    cfg = configure(globals(), inputs="a BIDS data set")
    if not run(cfg):
        sys.exit(2)


def run(cfg):
    """Writes the crops of a configuration. Returns whether all succeeded."""
    require(
        len(cfg.inputs) == 1 and is_bids(cfg.inputs[0]),
        "expected one BIDS data set, as in: python crops.py /data/study",
    )
    require(cfg.masks and Path(cfg.masks).is_dir(), f"--masks={cfg.masks}: no such folder; give the one with the masks")
    items = find_t1(cfg.inputs[0], cfg.participant_label, cfg.session_label)
    held_out = {item.participant_id for item in find_t1(cfg.inputs[0], cfg.validation)} if cfg.validation else set()
    segmenter = Segmenter.load(
        checkpoint=cfg.checkpoint, partner="", any_contrast="", tta=False, device=cfg.device, amp=cfg.amp
    )
    out_dir, rows, failures = fresh_folder(cfg.out_dir), [], []
    for name in ("imagesTr", "labelsTr"):
        (out_dir / name).mkdir()
    for item in tqdm(items, desc="heads", disable=None):
        try:
            rows += crop_sides(item, segmenter, cfg, out_dir)
        except UserError as error:
            failures.append(error)
    kept = [row for row in rows if row["inside"] >= cfg.least_inside]
    for row in rows:
        if row not in kept:
            failures.append(
                UserError(f"{row['scan']}: its {row['side']} crop would hold {row['inside']:.0%} of the mask")
            )
    for error in failures:
        fail(error)
    require(kept, f"{out_dir}: no crop was written")
    validates = not held_out or any(row["person"] in held_out for row in kept)
    require(
        validates, f"--validation={cfg.validation}: none of these people has a crop; mend the above, or name others"
    )
    save_listing(out_dir, kept, held_out, cfg.parts)
    print(
        f"{len(kept)} crops of {len({row['person'] for row in kept})} people in {out_dir}; next: python train_3d.py "
        f"--data_root={out_dir} --init={cfg.checkpoint}"
    )
    return not failures


def crop_sides(item, segmenter, cfg, out_dir):
    """Writes both crops of an Item. Returns their rows of crops.csv."""
    require(not item.problem, item.problem)
    scan, rows, arrays = read_scan(item.path), [], {}
    masks = {side: read_mask(item, side, scan, cfg) for side in SIDES}
    sides = segmenter(scan).sides
    require(len(sides) == 2, f"{item.path}: a crop already; expected a whole head")
    for side in sides:
        require(not side.problem, f"{item.path}: {side.problem}; no window to cut from")
        parts = masks[side.side]
        soft = np.stack([cut(part.astype(np.float32), scan.matrix, side.found.window) for part in parts])
        inside = soft.sum(0) >= 0.5
        label = np.where(inside, 1 + soft.argmax(0), 0).astype(np.uint8)
        case = f"{Path(item.name).name.removesuffix('_T1w')}_hemi-{side.side[0].upper()}"
        pixels = cut(scan.array, scan.matrix, side.found.window)
        total = sum(map(np.count_nonzero, parts)) * abs(np.linalg.det(scan.matrix))
        row = {"case": case, "scan": str(item.path), "person": item.participant_id, "side": side.side}
        rows.append({**row, "inside": min(1.0, float(soft.sum() / total))})
        if rows[-1]["inside"] >= cfg.least_inside:
            arrays[f"imagesTr/{case}.nii.gz"], arrays[f"labelsTr/{case}.nii.gz"] = pixels.astype(np.float32), label
    for name, array in arrays.items():  # once both sides went well, so that none is left that no list names
        nib.save(nib.Nifti1Image(array, np.eye(4)), out_dir / name)
    return rows


def read_mask(item, side, scan, cfg):
    """Returns the parts of the mask for one side of an Item, on the grid of its Scan: [bool (D, H, W), ...]."""
    path = find_mask(item, side, cfg)
    mask, image = read_nifti(path)
    same = mask.shape == scan.array.shape and np.allclose(image.affine, scan.image.affine, atol=1e-2)
    require(same, f"{path}: not on the grid of {item.path}; resample it to that")
    fits = not cfg.parts or np.isin(np.unique(mask), (0, 1, 2)).all()
    require(fits, f"{path}: expected 0, 1 (anterior) and 2 (posterior) with --parts=True; correct the mask")
    parts = [mask == 1, mask == 2] if cfg.parts else [mask >= max(mask.max() / 2, 1e-6)]
    require(any(part.any() for part in parts), f"{path}: an empty mask")
    return parts


def find_mask(item, side, cfg):
    """Returns the mask for one side of an Item: the only file below its participant, and session, with a matching
    name."""
    folder = Path(cfg.masks) / item.participant_id / item.session_id
    pattern = cfg.left if side == "left" else cfg.right
    found = sorted(p for p in folder.rglob(pattern) if has_ending(p) and not p.name.startswith("."))
    stem = item.path.name.partition("_T1w")[0]
    is_one_of_several = stem != "_".join(filter(None, (item.participant_id, item.session_id)))  # runs, acquisitions
    if len(found) > 1 or is_one_of_several:
        found = [path for path in found if path.name.startswith(f"{stem}_")]
    option = f"--{side}={pattern}"
    require(found, f"{item.path}: no {side} mask in {folder}; expected a file such as {option}")
    require(len(found) == 1, f"{item.path}: {len(found)} {side} masks fit in {folder}; narrow {option}")
    return found[0]


def save_listing(out_dir, rows, held_out, parts):
    """Writes dataset.json and crops.csv."""
    labels = (
        {"0": "background", "1": "anterior", "2": "posterior"} if parts else {"0": "background", "1": "hippocampus"}
    )
    content = {
        "name": "Crops around hippocampi, right ones mirrored",
        "labels": labels,
        "modality": {"0": "MRI"},
        "numTraining": len(rows),
        "training": [
            {"image": f"./imagesTr/{row['case']}.nii.gz", "label": f"./labelsTr/{row['case']}.nii.gz"} for row in rows
        ],
        "persons": {row["case"]: row["person"] for row in rows},
    }
    if held_out:
        content["validation"] = [row["case"] for row in rows if row["person"] in held_out]
    save_json(out_dir / "dataset.json", content)
    with atomic(out_dir / "crops.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "inside": f"{row['inside']:.4f}"} for row in rows)


if __name__ == "__main__":
    run_script(main)

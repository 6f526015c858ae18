"""Measures whole heads against hippodeep, and how stable the results are.

    python -m tools.heads --heads=FOLDER --anatomies=anatomies      writes heads.json; see also tools/stability.py

FOLDER is a BIDS data set with derivatives/hippodeep/ (masks and volumes.csv). hippodeep is another network's opinion, no truth.
"""

import csv
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

from hippo.data.anatomies import DETAIL, SIZE, SPACING_MM, draw_head, load_anatomies
from hippo.data.nifti import read_nifti
from hippo.device import precision
from hippo.errors import require
from hippo.files import save_json
from hippo.heads.anatomy import SIDES
from hippo.heads.locate import locate
from hippo.heads.segment import joint_labels
from hippo.options import configure, run_script
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import spread
from hippo.segmenter import Segmenter
from tools import simulate

import nibabel as nib
import numpy as np
import torch

HEADS = "heads"  # BIDS folder of whole heads with derivatives/hippodeep/
ANATOMIES = "anatomies"  # folder of label maps, see get_data.py
OUT = "heads.json"  # file to write

_EXAMPLE = "example_brain_t1"  # hippodeep's own head
_STABLE = ("sub-01", "sub-05", "sub-10", "sub-18")  # heads for the invariances
_BOX_MM = (44, 60, 44)  # around a centre: it should hold the whole hippocampus
_CONTRASTS = 5  # images drawn from each anatomy


def main():
    run(configure(globals()))


def run(cfg):
    """Measures everything and writes the JSON file."""
    paths, segmenter = find_heads(cfg.heads), Segmenter.load(device="cpu")
    results = describe(segmenter)
    results |= agreement(Path(cfg.heads), paths, segmenter)
    first = Segmenter.load(device="cpu", partner="")
    results["orientations"] = {name: orientations(path, first) for name, path in stable(paths).items()}
    results["rescans"] = {name: rescans(path, segmenter) for name, path in stable(paths).items()}
    results["anatomies"] = drawn(cfg.anatomies, segmenter.networks)
    save_json(cfg.out, results)
    print(f"wrote {cfg.out}")


def find_heads(folder):
    """The paths of the T1-weighted heads of a BIDS folder."""
    paths = sorted(Path(folder).glob("sub-*/anat/*_T1w.nii.gz"))
    require(paths, f"{folder}: no sub-*/anat/*_T1w.nii.gz in it; name the folder of whole heads with --heads=")
    return paths


def hippodeeps_mask(heads, name, side):
    """hippodeep's mask (D, H, W) of one side of a head in a BIDS folder, boolean."""
    folder = Path(heads) / ("other" if name == _EXAMPLE else f"derivatives/hippodeep/{name}")
    return read_nifti(folder / f"{name}_hemi-{side[0].upper()}_mask.nii.gz")[0] >= 128


def segment(segmenter, source):
    """(list of Hippocampus, Located, Scan) of a path, an image or a Scan."""
    result = segmenter(source)
    return [side.found for side in result.sides], result.located, result.scan


def mask_of(side, scan):
    """The boolean mask (D, H, W) of a Hippocampus."""
    return joint_labels([side], scan) > 0


def describe(segmenter):
    """What a file of results says of what segmented."""
    settings, dtype = segmenter.settings, segmenter.networks.dtype
    models = [settings.checkpoint, settings.partner, settings.any_contrast]
    return {"models": models, "threads": torch.get_num_threads(), "precision": precision(dtype)}


def stable(paths):
    """{name: path} of the heads for the invariances."""
    return {path.name.split("_")[0]: path for path in paths if path.name.split("_")[0] in _STABLE}


def agreement(heads, paths, segmenter):
    """Dice with hippodeep, distance of the middles, and intracranial volumes, of each head."""
    with open(heads / "derivatives/hippodeep/volumes.csv", newline="") as file:
        theirs = {row["participant_id"]: row for row in csv.DictReader(file)}
    pairs = {path.name.split("_")[0]: path for path in paths} | {_EXAMPLE: heads / f"other/{_EXAMPLE}.nii.gz"}
    rows = {}
    for name, path in pairs.items():
        sides, located, scan = segment(segmenter, path)
        row = {"etiv_mm3": located.etiv_mm3, "flags": located.flags}
        if name in theirs:
            row["hippodeep_etiv_mm3"] = float(theirs[name]["etiv_mm3"])
        for side in sides:
            truth = hippodeeps_mask(heads, name, side.side)
            middle = scan.matrix @ (np.argwhere(truth).mean(0) - (np.array(truth.shape) - 1) / 2)
            ends = np.argwhere(truth)
            box_middle = scan.matrix @ ((ends.min(0) + ends.max(0)) / 2 - (np.array(truth.shape) - 1) / 2)
            centre = located.centres[side.side]
            row[side.side] = {
                "problem": side.problem,
                "dice": dice(mask_of(side, scan), truth),
                "located_off_mm": None if centre is None else float(np.linalg.norm(centre - middle)),
                "box_off_mm": None if side.problem else float(np.linalg.norm(side.window.centre_mm - box_middle)),
                "volumes_mm3": [] if side.problem else side.volumes_mm3(scan),
                "hippodeep_mm3": float(truth.sum() * abs(np.linalg.det(scan.matrix))),
                "quality": side.quality,
                "flags": list(side.flags),
            }
        rows[name] = row
        print(name, {side: round(row[side]["dice"], 3) for side in SIDES}, flush=True)
    return {"heads": rows, "summary": summarise(rows)}


def summarise(rows):
    """Means, worst and correlations of agreement's rows."""
    sides = [row[side] for row in rows.values() for side in SIDES]
    dices = [s["dice"] for s in sides]
    off = {name: [s[name] for s in sides if s[name] is not None] for name in ("located_off_mm", "box_off_mm")}
    etivs = np.array([[r["etiv_mm3"], r["hippodeep_etiv_mm3"]] for r in rows.values() if "hippodeep_etiv_mm3" in r])
    volumes = np.array([[sum(s["volumes_mm3"]), s["hippodeep_mm3"]] for s in sides if not s["problem"]])
    ratio = etivs[:, 1] / etivs[:, 0]
    return {
        "found": len([s for s in sides if not s["problem"]]),
        "of": len(sides),
        "dice": {"mean": np.mean(dices), "std": spread(dices), "worst": min(dices)},
        **{name: {"mean": np.mean(values), "worst": max(values)} for name, values in off.items()},
        "volume_correlation": np.corrcoef(volumes.T)[0, 1],
        "etiv_correlation": np.corrcoef(etivs.T)[0, 1],
        "etiv_ratio": {"mean": ratio.mean(), "std": spread(ratio)},
    }


def segment_hippodeep(scans, code):
    """The label maps of volumes (array, affine) by hippodeep's own code: 1 left, 3 right, the whole hippocampus each."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/scan{number}.nii.gz" for number in range(len(scans))]
        for file, (array, affine) in zip(files, scans):
            image = nib.Nifti1Image(array.astype(np.float32), affine)
            image.set_qform(affine, 1)
            nib.save(image, file)
        subprocess.run([sys.executable, str(Path(code) / "hippodeep.py"), *files], check=True, capture_output=True)
        maps = []
        for file, (array, _) in zip(files, scans):
            result = np.zeros(array.shape, np.uint8)
            for letter, label in (("L", 1), ("R", 3)):
                result[read_nifti(file.replace(".nii.gz", f"_mask_{letter}.nii.gz"))[0] >= 128] = label
            maps.append(result)
    return maps


def orientations(path, segmenter):
    """In how many of the 48 orientations of a head the labels are the same, voxel by voxel, after turning back."""
    image, same = nib.load(path), 0
    ras = nib.orientations.axcodes2ornt("RAS")
    image = nib.as_closest_canonical(image)
    array, expected = np.asarray(image.dataobj), None
    image = nib.Nifti1Image(array, image.affine)
    for axes in itertools.permutations(("RL", "AP", "SI")):
        for code in itertools.product(*axes):
            turned = image.as_reoriented(nib.orientations.ornt_transform(ras, nib.orientations.axcodes2ornt(code)))
            turned = nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine)
            sides, _, scan = segment(segmenter, turned)
            labels = joint_labels(sides, scan)
            expected = labels if expected is None else expected
            same += bool(np.array_equal(labels, expected))
    print(path.name, same, "of 48 orientations", flush=True)
    return same


def perturbations(array, affine, located, scan):
    """{name: (array, affine)} of simulated rescans."""
    result = {f"turned 20 degrees about {'xyz'[a]}": simulate.turned(array, affine, a, 20) for a in range(3)}
    for axis, name in enumerate(("to the right", "forwards", "upwards")):
        result[f"shifted 40 mm {name}"] = simulate.padded(array, affine, axis, 40, 0)
    result["80 mm of empty space below"] = simulate.padded(array, affine, 2, 80, 0, "edge")
    result["the top third cut off"] = simulate.cut_off(array, affine, 2, share_high=1 / 3)
    middle = (np.array(array.shape) - 1) / 2 + np.linalg.solve(scan.matrix, located.centres["left"])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    result["the lower front set to zero"] = simulate.faceless(
        array, affine, int(middle[1] + 35 / spacing[1]), int(middle[2])
    )
    for mm in (0.7, 1.3, 2.0):
        result[f"voxels of {mm:g} mm"] = simulate.respaced(array, affine, (mm,) * 3)
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        result[f"{name} slices of 3 mm"] = simulate.respaced(
            array, affine, [3.0 if a == axis else 1.0 for a in range(3)]
        )
    result["intensities inverted"] = simulate.inverted(array, affine)
    return result


def rescans(path, segmenter):
    """{perturbation: {side: change of the volume, a share} and flags} of a head."""
    image = nib.as_closest_canonical(nib.load(path))
    array, rows = np.asarray(image.dataobj), {}
    sides, located, scan = segment(segmenter, nib.Nifti1Image(array, image.affine))
    before = {side.side: sum(side.volumes_mm3(scan)) for side in sides}
    for name, (changed, affine) in perturbations(array, image.affine, located, scan).items():
        sides, found, new = segment(segmenter, nib.Nifti1Image(changed.astype(np.float32), affine))
        row = {"flags": sorted({*found.flags, *(flag for side in sides for flag in side.flags)})}
        for side in sides:
            change = None if side.problem else sum(side.volumes_mm3(new)) / before[side.side] - 1
            row[side.side] = {"change": change, "problem": side.problem}
        rows[name] = row
        print(path.name, name, row, flush=True)
    return rows


def drawn(folder, networks):
    """In how many images drawn from the anatomies the boxes hold the whole hippocampus of the right side."""
    held = total = flagged = 0
    for index, labels in enumerate(load_anatomies(folder).values()):
        for contrast in range(_CONTRASTS):
            image, shares = draw_head(labels, np.random.default_rng([97, index, contrast]), whole=True)
            scan = simulate.scan_of(image, np.diag([*[SPACING_MM / DETAIL] * 3, 1]))
            found = locate(networks.locator, scan, networks.device, networks.dtype)
            for number, side in enumerate(SIDES, 1):
                total += 1
                flagged += side in found.problems
                if side in found.problems:
                    continue
                voxels = (np.argwhere(shares[number].numpy() > 0.5) - (SIZE - 1) / 2) * SPACING_MM
                held += bool((np.abs(voxels - found.centres[side]) <= np.array(_BOX_MM) / 2).all())
    return {"boxes": total, "hold_the_hippocampus": held, "said_not_found": flagged}


if __name__ == "__main__":
    run_script(main)

"""Measures whole heads against hippodeep, and how stable the results are; called by python -m tools.benchmark --only=heads.

Heads: a BIDS folder with derivatives/hippodeep/ (masks and volumes.csv). hippodeep is another network's opinion, no truth.
"""

import csv
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hippo.data.anatomies import draw_head, load_anatomies
from hippo.files import ROOT, save_json
from hippo.heads.anatomy import SIDES
from hippo.heads.locate import ETIV_SCALE, locate
from hippo.heads.scan import Scan, read_scan
from hippo.heads.segment import joint_labels
from hippo.scoring.metrics import dice
from tools import simulate
from tools.common import EXAMPLE, find_heads, hippodeeps_mask, load_tools, mask_of

import nibabel as nib
import numpy as np

_STABLE = ("sub-01", "sub-05", "sub-10", "sub-18")  # heads for the invariances
_BOX_MM = (44, 60, 44)  # around a centre: it should hold the whole hippocampus
_CONTRASTS = 5  # images drawn from each anatomy


def run(heads, anatomies, out, hippodeep=""):
    """Measures everything and writes a JSON file. hippodeep: folder of its code, to time it in the same run; empty: not."""
    paths, tools = find_heads(heads), load_tools()
    results = tools.describe()
    results["speed"] = speed(paths, hippodeep)
    results |= agreement(Path(heads), paths, tools)
    results["orientations"] = {name: orientations(path, tools) for name, path in stable(paths).items()}
    results["rescans"] = {name: rescans(path, tools) for name, path in stable(paths).items()}
    results["anatomies"] = drawn(anatomies, tools)
    save_json(out, results)
    print(f"wrote {out}")


def stable(paths):
    """{name: path} of the heads for the invariances."""
    return {path.name.split("_")[0]: path for path in paths if path.name.split("_")[0] in _STABLE}


def agreement(heads, paths, tools):
    """Dice with hippodeep, distance of the middles, and intracranial volumes, of each head."""
    with open(heads / "derivatives/hippodeep/volumes.csv", newline="") as file:
        theirs = {row["participant_id"]: row for row in csv.DictReader(file)}
    pairs = {path.name.split("_")[0]: path for path in paths} | {EXAMPLE: heads / f"other/{EXAMPLE}.nii.gz"}
    rows = {}
    for name, path in pairs.items():
        scan, (sides, located) = tools.segment_file(path)
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
    ratio = etivs[:, 1] / etivs[:, 0] * ETIV_SCALE
    return {
        "found": len([s for s in sides if not s["problem"]]),
        "of": len(sides),
        "dice": {"mean": np.mean(dices), "std": np.std(dices), "worst": min(dices)},
        **{name: {"mean": np.mean(values), "worst": max(values)} for name, values in off.items()},
        "volume_correlation": np.corrcoef(volumes.T)[0, 1],
        "etiv_correlation": np.corrcoef(etivs.T)[0, 1],
        "etiv_scale": {"mean": ratio.mean(), "std": ratio.std()},
    }


def speed(paths, hippodeep):
    """Seconds of predict.py: its start, each head of a batch from file to files, a batch and single runs; peak memory;
    and seconds a head of hippodeep, for a batch of five with the loading of its models."""
    command = [sys.executable, "predict.py", "--pictures=False"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import predict"], cwd=ROOT, check=True)
        result = {"import_seconds": time.perf_counter() - start}
        start = time.perf_counter()
        absolute = [str(path.resolve()) for path in paths]
        code = (
            "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
            "try: runpy.run_path('predict.py', run_name='__main__')\n"
            "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)"
        )
        batch = [sys.executable, "-c", code, *command[1:], "--workers=1", f"--out_dir={folder}/batch", *absolute]
        answer = subprocess.run(batch, cwd=ROOT, capture_output=True, text=True)
        result["batch_seconds"] = time.perf_counter() - start
        result["peak_memory_mib"] = float(answer.stdout.splitlines()[-1])
        with open(f"{folder}/batch/volumes.csv", newline="") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)][::2]
        result["seconds_a_head"] = {"mean": np.mean(seconds), "median": np.median(seconds), "worst": max(seconds)}
        start = time.perf_counter()
        for i, path in enumerate(absolute):
            subprocess.run([*command, f"--out_dir={folder}/single_{i}", path], cwd=ROOT, capture_output=True)
        result["single_runs_seconds"] = time.perf_counter() - start
        if hippodeep:
            # it writes beside them
            copies = [shutil.copyfile(path, f"{folder}/{Path(path).name}") for path in absolute[:5]]
            start = time.perf_counter()
            command = [sys.executable, str(Path(hippodeep).resolve() / "hippodeep.py"), *copies]
            subprocess.run(command, check=True, capture_output=True)
            result["hippodeep_seconds_a_head"] = (time.perf_counter() - start) / len(copies)
    print(result, flush=True)
    return result


def labels_of(array, affine, tools, path):
    """(label map in RAS, sides, Located, Scan) of a volume, through a file."""
    nib.save(nib.Nifti1Image(array, affine), path)
    scan = read_scan(path)
    sides, located = tools.segment(scan)
    return joint_labels(sides, scan), sides, located, scan


def orientations(path, tools):
    """In how many of the 48 orientations of a head the labels are the same, voxel by voxel, after turning back (with the
    first model alone: all see the same windows)."""
    tools = tools._replace(models=tools.models[:1])
    image, same = nib.load(path), 0
    ras = nib.orientations.axcodes2ornt("RAS")
    image = nib.as_closest_canonical(image)
    array, expected = np.asarray(image.dataobj), None
    image = nib.Nifti1Image(array, image.affine)
    with tempfile.TemporaryDirectory() as folder:
        for axes in itertools.permutations(("RL", "AP", "SI")):
            for code in itertools.product(*axes):
                turned = image.as_reoriented(nib.orientations.ornt_transform(ras, nib.orientations.axcodes2ornt(code)))
                labels = labels_of(np.asarray(turned.dataobj), turned.affine, tools, f"{folder}/turned.nii")[0]
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


def rescans(path, tools):
    """{perturbation: {side: change of the volume, a share} and flags} of a head."""
    image = nib.as_closest_canonical(nib.load(path))
    array, rows = np.asarray(image.dataobj), {}
    with tempfile.TemporaryDirectory() as folder:
        _, sides, located, scan = labels_of(array, image.affine, tools, f"{folder}/scan.nii")
        before = {side.side: sum(side.volumes_mm3(scan)) for side in sides}
        for name, (changed, affine) in perturbations(array, image.affine, located, scan).items():
            _, sides, found, new = labels_of(changed.astype(np.float32), affine, tools, f"{folder}/scan.nii")
            row = {"flags": sorted({*found.flags, *(flag for side in sides for flag in side.flags)})}
            for side in sides:
                change = None if side.problem else sum(side.volumes_mm3(new)) / before[side.side] - 1
                row[side.side] = {"change": change, "problem": side.problem}
            rows[name] = row
            print(path.name, name, row, flush=True)
    return rows


def drawn(folder, tools):
    """In how many images drawn from the anatomies the boxes hold the whole hippocampus of the right side."""
    held = total = flagged = 0
    for index, labels in enumerate(load_anatomies(folder).values()):
        for contrast in range(_CONTRASTS):
            image, shares = draw_head(labels, np.random.default_rng([97, index, contrast]), whole=True)
            scan = Scan(image[0].numpy(), np.eye(3) * 4.0, np.zeros(3), None, [])
            found = locate(tools.locator, scan, tools.device, tools.dtype)
            for number, side in enumerate(SIDES, 1):
                total += 1
                flagged += side in found.problems
                if side in found.problems:
                    continue
                voxels = (np.argwhere(shares[number].numpy() > 0.5) - 31.5) * 4.0
                held += bool((np.abs(voxels - found.centres[side]) <= np.array(_BOX_MM) / 2).all())
    return {"boxes": total, "hold_the_hippocampus": held, "said_not_found": flagged}

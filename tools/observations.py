"""What tools/quality.py learns from: segmentations of crops, clean and degraded, by models that did not see them."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from hippo.data.cases import load_volumes
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import load_json, save_json
from hippo.heads.segment import joint_labels, segment_sides
from hippo.models.checkpoint import load_model
from hippo.scoring.metrics import dice
from tools.simulate import DEGRADATIONS, scan_of

import numpy as np
import torch

_MODELS = ("3d-0", "2d-0", "any_contrast")  # the runs of a fold
_HINT = "the commands are in the first lines of tools/quality.py"


def observe_all(runs, data_root, out_dir, workers):
    """The observations of all folds in `runs`: a list of dicts, see observe. Observes what is missing in out_dir."""
    folds = sorted(Path(runs).glob("fold_[0-4]"))
    require(folds, f"{runs}: no folds in it; {_HINT}")
    missing = [fold for fold in folds if not (Path(out_dir) / f"{fold.name}.json").is_file()]
    for fold in missing:
        for name in _MODELS:
            path = fold / name / "last.pth"
            require(path.is_file(), f"{path}: no such weights; {_HINT}")
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(partial(observe_fold, data_root, out_dir), missing))
    files = [Path(out_dir) / f"{fold.name}.json" for fold in folds]
    return [row for file in files for row in load_json(file, "python -m tools.quality")]


def observe_fold(data_root, out_dir, folder):
    """Writes the observations of one fold."""
    device, dtype = set_up_device("cpu")
    loaded = [load_model(folder / name / "last.pth") for name in _MODELS]
    in_3d, in_2d, any_contrast = [model for model, _ in loaded]
    # as predict.py uses them: {kind: (models, check, whether in a window, as in a head)}
    kinds = {
        "one_model": ([in_3d], any_contrast, True),
        "two_models": ([in_3d, in_2d], any_contrast, False),
        "any_contrast": ([any_contrast], None, True),
    }
    rows, cases = [], loaded[0][1]["val_cases"]
    seen = {case for _, info in loaded for case in info["train_cases"]}
    require(not seen & set(cases), f"{folder}: its models were not trained on the same fold")
    for number, volume in enumerate(load_volumes(data_root, cases)):
        for index, (degradation, degrade) in enumerate(DEGRADATIONS.items()):
            changed = degrade(volume.image, volume.label, np.random.default_rng([number, index]))
            for kind, (models, check, window) in kinds.items():
                row = observe(models, check, changed, window, device, dtype)
                rows.append({**row, "case": volume.id, "kind": kind, "degradation": degradation})
        print(f"{folder.name}: {number + 1} cases", flush=True)
    save_json(Path(out_dir) / f"{folder.name}.json", rows)


def observe(models, check, changed, window, device, dtype):
    """{"dice", "problem", "evidence", ...} of one segmentation. changed: by one of DEGRADATIONS; window: whether it is found in a
    window, as in a head, and else in the whole crop."""
    image, label, centre_mm = changed
    scan = scan_of(np.ascontiguousarray(image), np.eye(4))
    where = {"left": centre_mm if window else None}, device, dtype
    side = segment_sides(models, scan, *where, check=check)["left"]
    found = joint_labels([side], scan, crop=True)
    parts = [part for part in (1, 2) if (found == part).any() or (label == part).any()]
    return {
        "dice": np.mean([dice(found == part, label == part) for part in parts or (1,)]),
        "problem": side.problem,
        "flags": side.flags,
        "volumes_mm3": [] if side.problem else side.volumes_mm3(scan),
        "evidence": side.evidence,
    }

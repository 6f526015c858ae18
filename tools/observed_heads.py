"""What quality and flags say of whole heads: as they are, upside down, and of places without a hippocampus.

Called by python -m tools.quality.
"""

from hippo.heads.anatomy import SIDES
from hippo.heads.quality import judge
from hippo.heads.segment import segment_side
from hippo.scoring.metrics import dice
from hippo.scoring.statistics import bootstrap_of
from tools.heads import find_heads, hippodeeps_mask, mask_of, scan_of

import numpy as np
from scipy.stats import spearmanr

_AWAY_MM = (
    (0, 55, 25),
    (0, -55, 20),
    (0, 0, 45),
    (0, 10, -40),
)  # from a hippocampus: frontal, occipital, parietal, neck


def observe_heads(heads, tools):
    """{"sides": {head and side: quality, Dice with hippodeep, flags}, "spearman": of both, with an interval over heads;
    "upside_down", "elsewhere": counts of what is flagged}."""
    sides, upside_down, elsewhere = {}, [], []
    for path in find_heads(heads):
        scan, (found, located) = tools.segment_file(path)
        name = path.name.split("_")[0]
        for side in found:
            mask, truth = mask_of(side, scan), hippodeeps_mask(heads, name, side.side)
            row = {
                "quality": side.quality,
                "dice": dice(mask, truth),
                "flags": list(side.flags),
                "problem": side.problem,
            }
            sides[f"{name} {side.side}"] = {
                **row,
                "volume_mm3": sum(side.volumes_mm3(scan)) if not side.problem else None,
            }
        turned, about = tools.segment(
            scan_of(np.ascontiguousarray(scan.array[:, :, ::-1]), np.diag([*spacing(scan), 1]))
        )
        upside_down += [bool(side.problem or side.flags or about.flags) for side in turned]
        for number, side in enumerate(SIDES):
            away = np.array(_AWAY_MM[(len(elsewhere) + number) % len(_AWAY_MM)])
            elsewhere.append(look_elsewhere(tools, scan, located.centres[side] + away, side, found[number]))
        print(name, *(f"{sides[f'{name} {side}']['quality']:.3f}" for side in SIDES), flush=True)
    pairs = np.array(
        [
            [[sides[f"{name} {side}"][key] for side in SIDES] for key in ("quality", "dice")]
            for name in dict.fromkeys(key.split()[0] for key in sides)
        ]
    )  # (heads, 2, sides)
    spearman = bootstrap_of(lambda i: spearmanr(*pairs[i].transpose(1, 0, 2).reshape(2, -1)).statistic, len(pairs))
    return {"sides": sides, "spearman": spearman, "upside_down": count(upside_down), "elsewhere": count(elsewhere)}


def spacing(scan):
    return np.linalg.norm(scan.matrix, axis=0)


def count(raised):
    return {"of": len(raised), "flagged": int(sum(raised))}


def look_elsewhere(tools, scan, centre_mm, side, usual):
    """Whether a window that starts far from the hippocampus gives no result, a flag, or the usual result after all."""
    found = segment_side(tools.models, scan, centre_mm, side, tools.device, tools.dtype, check=tools.any_contrast)
    found = judge([found], scan, tools.limits)[0]
    return bool(found.problem or found.flags) or dice(mask_of(found, scan), mask_of(usual, scan)) > 0.5

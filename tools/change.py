"""Measures what change.tsv and the profiles show: known changes of heads, and rescans of one person, who has not changed.

    python -m tools.change --heads=FOLDER      hippocampi made thinner by known shares; 20 heads take an hour on a core; writes change.json
    python -m tools.change --heads=FOLDER --only=rescans --rescans=STUDY      simulated and real rescans; writes rescans.json

The second one also writes pretrained/rescans.json, the grey band of predict.py. STUDY is a BIDS data set of people with
two sessions, between whom nothing changed; without it, the band is that of the simulated rescans.
"""

import json
from functools import partial

from hippo.errors import require
from hippo.files import ROOT, save_json, save_text
from hippo.heads.anatomy import SIDES
from hippo.heads.profile import in_steps
from hippo.heads.result import PARTS
from hippo.options import configure, run_script
from hippo.scoring.statistics import bootstrap_of
from hippo.segmenter import Segmenter
from hippo.study.change import RESCANS as BAND
from hippo.study.inputs import find_t1
from tools import simulate
from tools.heads import describe, find_heads
from tools.simulate import scan_of
from tools.stability import perturbed

import nibabel as nib
import numpy as np

HEADS = "heads"  # BIDS folder of whole heads
RESCANS = ""  # BIDS folder of people who were scanned twice; empty: none
ONLY = "made"  # or rescans
OUT = "change.json"  # file to write
OUT_RESCANS = "rescans.json"  # file that --only=rescans writes

_SHARES = (0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.10)  # by which a hippocampus gets thinner
_RESCANNED = (0, 0.02, 0.05, 0.10)  # those for which the second visit is a simulated rescan, too
_DEGREES, _SHIFT_MM, _NOISE = 3.0, 3.0, 0.03  # of the simulated second visit
VISITS = {"same scan": "the scan itself, changed", "rescan": "turned, shifted and with noise as well"}
VISITS["scaled"] = "the whole head smaller, by its header"


def main():
    cfg = configure(globals())
    require(cfg.only in ("made", "rescans"), f"--only={cfg.only}: expected made or rescans")
    segmenter = Segmenter.load(device="cpu")
    (measure_made if cfg.only == "made" else measure_rescans)(cfg, segmenter)


# ---- known changes


def measure_made(cfg, segmenter):
    """Measures known changes and writes the file."""
    heads, results = {}, describe(segmenter)
    for number, path in enumerate(find_heads(cfg.heads)):
        rng = np.random.default_rng([11, number])
        heads[path.name.split("_")[0]] = thin(path, segmenter, rng) + scale(path, segmenter)
        save_json(cfg.out, results | {"heads": heads})
        print(path.name, flush=True)
    save_json(cfg.out, results | {"heads": heads, "summary": {visit: lines(heads, visit) for visit in VISITS}})
    print(f"wrote {cfg.out}")


def thin(path, segmenter, rng):
    """[{"side", "part", "made": change in %, and what was found of it in each of VISITS}] of a head, for each of _SHARES."""
    array, affine = read(path)
    first, rows = segmenter(scan_of(array, affine)), []
    labels = {side.side: on_grid(side, array.shape) for side in first.sides if not side.problem}
    for share in _SHARES:
        changed, made = array, {}
        for side, mask in labels.items():
            changed, volumes = simulate.thinned(changed, affine, mask, share)
            made[side] = {
                "anterior": volumes.get(1, 0.0),
                "posterior": volumes.get(2, 0.0),
                "total": sum(volumes.values()),
            }
        scans = {"same scan": changed}
        if share in _RESCANNED:
            shift_mm, axis = rng.uniform(-_SHIFT_MM, _SHIFT_MM, 3), int(rng.integers(3))
            moved, _ = simulate.turned(changed, affine, axis, rng.choice((-1, 1)) * _DEGREES, shift_mm)
            scans["rescan"], _ = simulate.noisy(moved, affine, _NOISE, rng)
        found = {visit: segmenter(scan_of(scan, affine)) for visit, scan in scans.items()}
        for side in labels:
            for part in PARTS:
                before, *after = (getattr(getattr(r, side), f"{part}_mm3") for r in (first, *found.values()))
                row = {"share": share, "side": side, "part": part, "made": percent(made[side][part], before)}
                rows.append(row | {visit: percent(mm3, before) for visit, mm3 in zip(found, after)})
    return rows


def scale(path, segmenter):
    """The same as `thin`, of a head that is smaller as a whole by its header: what the networks alone make of a size."""
    array, affine = read(path)
    first, rows = segmenter(scan_of(array, affine)), []
    for share in _RESCANNED[1:]:
        smaller = affine.copy()
        smaller[:3, :3] *= (1 - share) ** (1 / 3)
        later = segmenter(scan_of(array, smaller))
        for side in (side for side in SIDES if not getattr(first, side).problem):
            for part in PARTS:
                before, after = (getattr(getattr(r, side), f"{part}_mm3") for r in (first, later))
                row = {"share": share, "side": side, "part": part, "made": -100 * share}
                rows.append(row | {"scaled": percent(after, before)})
    return rows


def read(path):
    """(array (D, H, W) in RAS, its affine) of a head."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj, np.float32), image.affine


def on_grid(side, shape):
    """The labels of a Side on the grid of its scan, in RAS."""
    labels = np.zeros(shape, np.uint8)
    labels[side.found.bbox] = side.found.labels
    return labels


def percent(after, before):
    """The change in %, or None where there is no result."""
    return None if after is None or not before else 100 * (after / before - 1)


def lines(heads, visit):
    """{part: the line of found on made, with intervals by person} of what `thin` found in one of VISITS."""
    result = {}
    for part in PARTS:
        rows = [[row for row in head if row["part"] == part and visit in row] for head in heads.values()]
        found = [[(row["made"], row[visit]) for row in head if None not in (row["made"], row[visit])] for head in rows]
        points = [np.array(pairs).reshape(-1, 2) for pairs in found]
        measures = {name: bootstrap_of(partial(measure, points, name), len(points)) for name in line(points)}
        result[part] = measures | {
            "pairs": sum(map(len, points)),
            "failed": sum(map(len, rows)) - sum(map(len, points)),
        }
    return result


def measure(points, name, people):
    """A value of `line` for those people, by their indices."""
    return line([points[i] for i in people])[name]


def line(points):
    """Slope and intercept of found on made, the standard deviation about the line, and that of no change, all in %."""
    made, found = np.concatenate(points).T
    slope, intercept = np.polyfit(made, found, 1)
    rest = found - np.polyval((slope, intercept), made)
    return {"slope": slope, "intercept_percent": intercept, "scatter_percent": rest.std(ddof=2)}


# ---- rescans


def measure_rescans(cfg, segmenter):
    """Measures simulated and, where there are any, real rescans, and writes the files."""
    results = describe(segmenter)
    pairs = [pair for path in find_heads(cfg.heads) for pair in simulated_pairs(path, segmenter)]
    results["simulated"] = summarise(pairs)
    if cfg.rescans:
        pairs = real_pairs(cfg.rescans, segmenter)
        results["real"] = {"people": len({person for person, *_ in pairs})} | summarise([pair for _, *pair in pairs])
    save_json(cfg.out_rescans, results)
    save_text(ROOT / BAND, json.dumps(band(results), indent=1) + "\n")
    print(f"wrote {cfg.out_rescans} and {BAND}")


def simulated_pairs(path, segmenter):
    """[(Result of a head, Result of a simulated rescan)]."""
    array, affine = read(path)
    first = numbers(segmenter(scan_of(array, affine)))
    print(path.name, flush=True)
    scans = perturbed(array, affine, np.random.default_rng(0))
    return [(first, numbers(segmenter(scan_of(changed, grid)))) for _, changed, grid, _ in scans]


def real_pairs(folder, segmenter):
    """[(person, numbers of the first session, numbers of a later one)] of a BIDS data set."""
    people = {}
    for item in find_t1(folder):
        people.setdefault(item.participant_id, []).append(item)
    visits = {person: items for person, items in people.items() if len({item.session_id for item in items}) > 1}
    require(visits, f"{folder}: nobody with two sessions in it; name a data set of people who were scanned twice")
    found = {person: [numbers(segmenter(item.path)) for item in items] for person, items in visits.items()}
    return [(person, first, later) for person, (first, *others) in found.items() for later in others]


def numbers(result):
    """{side: {"volumes": {part: mm3}, "length_mm", "border_mm", "areas": (STEPS,)}} of a Result; None without a result."""
    sides = {}
    for side in result.sides:
        if side.problem:
            sides[side.side] = None
            continue
        profile = side.profile()
        volumes = {part: getattr(side, f"{part}_mm3") for part in PARTS}
        areas = in_steps(profile)
        sides[side.side] = {
            "volumes": volumes,
            "length_mm": profile.length_mm,
            "border_mm": profile.border_mm,
            "areas": areas,
        }
    return sides


def summarise(pairs):
    """What rescans change: {"volumes": {part: in %}, "length_mm", "border_mm", "correlation" of the areas, "areas_percent":
    median by step}. pairs: [(numbers, numbers)]."""
    sides = [(first[side], later[side]) for first, later in pairs for side in SIDES]
    there = [(a, b) for a, b in sides if a and b]
    changes = {part: [percent(b["volumes"][part], a["volumes"][part]) for a, b in there] for part in PARTS}
    volumes = {part: np.abs(np.array(values, float)) for part, values in changes.items()}
    areas = np.array([100 * np.abs(b["areas"] / a["areas"] - 1) for a, b in there])
    alike = [np.corrcoef(a["areas"], b["areas"])[0, 1] for a, b in there]
    return {
        "volumes": {part: spread(values) for part, values in volumes.items()},
        **{name: spread([abs(b[name] - a[name]) for a, b in there]) for name in ("length_mm", "border_mm")},
        "correlation": {"median": np.median(alike), "percentile_5": np.percentile(alike, 5), "lowest": min(alike)},
        "areas_percent": np.median(areas, axis=0),
        "pairs": len(there),
        "failed": len(sides) - len(there),
    }


def spread(values):
    """Median, 95th percentile and largest of absolute changes; what is not known is left out."""
    return {"median": np.nanmedian(values), "percentile_95": np.nanpercentile(values, 95), "largest": np.nanmax(values)}


def band(results):
    """The content of pretrained/rescans.json: the largest change of real rescans, else 95 % of the simulated ones."""
    is_real = "real" in results
    of = results["real" if is_real else "simulated"]
    real = f"the largest change of {of['pairs']} hippocampi that were scanned twice"
    text = real if is_real else f"95 % of {of['pairs']} simulated rescans of hippocampi change by less"
    measure = "largest" if is_real else "percentile_95"
    content = {"band_percent": {part: round(of["volumes"][part][measure], 2) for part in PARTS}, "band_of": text}
    return content | {name: results[name]["volumes"] for name in ("real", "simulated") if name in results}


# ---- the blocks of the pages


if __name__ == "__main__":
    run_script(main)

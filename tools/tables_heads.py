"""The blocks of the pages on whole heads, from results/heads.json."""

from hippo.heads.anatomy import SIDES
from hippo.heads.locate import ETIV_SCALE
from hippo.scoring.tables import markdown_table

import numpy as np


def sections(published):
    """{name: function that returns Markdown}."""
    return {
        "heads": lambda: agreement(published("heads.json")),
        "heads_rescans": lambda: rescans(published("heads.json")),
        "heads_speed": lambda: speed(published("heads.json")),
        "skull": lambda: skull(published("skull.json")["heads"]),
        "ordinary_cpu": lambda: ordinary_cpu(published("ordinary_cpu.json")),
    }


def agreement(results):
    """What was found in the heads, beside hippodeep."""
    s = results["summary"]
    scale, drawn = s["etiv_scale"], results["anatomies"]
    rows = [
        ["hippocampi found", f"{s['found']} of {s['of']}"],
        ["Dice with hippodeep, whole hippocampus", _spread(s["dice"], 3) + f", worst {s['dice']['worst']:.3f}"],
        ["correlation of volumes with hippodeep's", f"{s['volume_correlation']:.2f}"],
        ["distance of the located centre from the centre of hippodeep's mask, mm", _worst(s["located_off_mm"])],
        [
            "distance of the window's centre from the centre of hippodeep's bounding box, mm",
            _worst(s["box_off_mm"]),
        ],
        ["correlation of eTIV with hippodeep's", f"{s['etiv_correlation']:.3f}"],
        [
            f"hippodeep's eTIV / our network's intracranial volume (eTIV is that volume times {ETIV_SCALE}, in 20 brains without skull)",
            _spread(scale, 3),
        ],
        [
            "boxes of 44 x 60 x 44 mm around located centres that hold the whole hippocampus (20 synthetic heads, 5 contrasts each)",
            f"{drawn['hold_the_hippocampus']} of {drawn['boxes']} ({drawn['said_not_found']} not found)",
        ],
        ["heads that give the same labels, voxel by voxel, in all 48 orientations", _orientations(results)],
    ]
    return markdown_table(["20 heads of one scanner and 1 of another", ""], rows)


def rescans(results):
    """How volumes change in simulated rescans."""
    heads = results["rescans"]
    rows = []
    for name in next(iter(heads.values())):
        sides = [heads[head][name][side] for head in heads for side in SIDES]
        changes = np.array([side["change"] for side in sides if side["change"] is not None])
        flags = sorted({flag for head in heads.values() for flag in head[name]["flags"]})
        words = [f"{100 * f(np.abs(changes)):.1f}" for f in (np.median, np.max)] if len(changes) else ["-", "-"]
        rows.append([name, f"{len(changes)} of {len(sides)}", *words, ", ".join(flags)])
    titles = [
        "rescan",
        "segmented",
        "median change, %",
        "largest change, %",
        "flags raised in at least one head (without those of the header and the voxels, such as `thick_slices`)",
    ]
    return markdown_table(titles, rows)


def speed(results):
    """A sentence on the time and memory of predict.py."""
    s = results["speed"]
    text = (
        f"On two cores in {results['precision']}, models loaded, file to files without the picture: "
        f"**{s['seconds_a_head']['mean']:.1f} s a head** (worst {s['seconds_a_head']['worst']:.1f}). A batch of 20 takes "
        f"{s['batch_seconds']:.0f} s, 20 single runs {s['single_runs_seconds']:.0f} s. Imports take {s['import_seconds']:.1f} s; "
        f"peak memory is {s['peak_memory_mib'] / 1024:.2f} GiB."
    )
    if "hippodeep_seconds_a_head" in s:
        text += f" hippodeep's own code takes {s['hippodeep_seconds_a_head']:.1f} s a head in the same run."
    return text


def ordinary_cpu(results):
    """The same on a processor without bf16."""
    s = results["speed"]
    return (
        f"On two cores of a processor without bf16 ({results['instructions']}, {results['precision']}), in "
        f"`python -m tools.ordinary_cpu`: **{s['seconds_a_head']['mean']:.1f} s a head** (worst "
        f"{s['seconds_a_head']['worst']:.1f}), {s['peak_memory_mib'] / 1024:.2f} GiB; `python train_3d.py` takes "
        f"{results['training_minutes']:.0f} minutes and scores {results['dice']:.4f}."
    )


def skull(heads):
    """Synthetic heads with and without what surrounds the brain."""
    rows = {"hippocampi found": [], "Dice with the label, whole hippocampus": [], "eTIV / true intracranial volume": []}
    volumes = {}
    for name in ("whole head", "brain"):
        sides = [head[name][side] for head in heads.values() for side in SIDES]
        volumes[name] = np.array([side["mm3"] for side in sides])
        scores = np.array([side["dice"] for side in sides])
        ratio = np.array([head[name]["etiv_mm3"] / head["intracranial_mm3"] for head in heads.values()])
        cells = [f"{values.mean():.3f} ± {values.std():.3f}" for values in (scores, ratio)]
        for row, cell in zip(rows.values(), [f"{np.count_nonzero(volumes[name])} of {len(sides)}", *cells]):
            row.append(cell)
    table = markdown_table([f"{len(heads)} synthetic heads", "whole", "brain only"], [[k, *v] for k, v in rows.items()])
    agreement = np.array([head["agreement"][side] for head in heads.values() for side in SIDES])
    change = 100 * np.abs(volumes["brain"] / volumes["whole head"] - 1)
    return (
        f"{table}\n\nDice of one with the other: {agreement.mean():.3f} on average, {agreement.min():.3f} in the worst. Volumes "
        f"differ by {np.median(change):.1f} % in the median and by {np.percentile(change, 95):.1f} % in the 95th percentile."
    )


def _spread(value, digits):
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


def _worst(value):
    return f"{value['mean']:.1f} on average, {value['worst']:.1f} in the worst"


def _orientations(results):
    same = list(results["orientations"].values())
    return f"{sum(n == 48 for n in same)} of {len(same)}"

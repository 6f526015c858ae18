"""The blocks of the pages on whole heads: how good, how stable, other contrasts, quality, flags and uncertainty."""

from hippo.heads.anatomy import SIDES
from hippo.scoring.statistics import spread
from hippo.scoring.tables import markdown_table, with_interval

import numpy as np

_KINDS = {
    "one_model": "the 3D model of T1, in a head",
    "two_models": "both models of T1, in a crop",
    "any_contrast": "the model for any contrast, in a head",
}


def sections(published):
    """{name of a block: function that returns Markdown}."""
    return {
        "heads": lambda: agreement(published("heads.json")),
        "heads_rescans": lambda: rescans(published("heads.json")),
        "heads_speed": lambda: speed(published("speed.json")),
        "skull": lambda: skull(published("skull.json")["heads"]),
        "ordinary_cpu": lambda: ordinary_cpu(published("ordinary_cpu.json")),
        "repeatability": lambda: repeatability(published("repeatability.json")),
        "any_contrast_cases": lambda: cases(published("any_contrast.json")["cases"]),
        "any_contrast_heads": lambda: other_contrasts(published("any_contrast.json")),
        "any_contrast_visits": lambda: visits(published("any_contrast.json")["visits"]),
        "quality": lambda: kinds(published("quality.json")["kinds"]),
        "quality-thresholds": lambda: thresholds(published("quality.json")["kinds"]),
        "quality-rescans": lambda: red_rescans(published("quality.json")["heads"]["coarse"]),
        "quality-heads": lambda: judged(published("quality.json")),
        "robust-parts": lambda: parts(published("robust_parts.json")),
        "flags": lambda: flags(published("quality.json")),
        "uncertainty": lambda: uncertainty(published("uncertainty.json")["methods"]),
    }


def agreement(results):
    """What was found in the heads, beside hippodeep."""
    s = results["summary"]
    drawn = results["anatomies"]
    rows = [
        ["hippocampi found", f"{s['found']} of {s['of']}"],
        ["Dice with hippodeep, whole hippocampus", _spread(s["dice"], 3) + f", worst {s['dice']['worst']:.3f}"],
        ["correlation of volumes with hippodeep's", f"{s['volume_correlation']:.2f}"],
        ["correlation of eTIV with hippodeep's", f"{s['etiv_correlation']:.3f}"],
        [
            "boxes of 44 x 60 x 44 mm around located centres that hold the whole hippocampus (20 synthetic heads, 5 contrasts each)",
            f"{drawn['hold_the_hippocampus']} of {drawn['boxes']} ({drawn['said_not_found']} not found)",
        ],
        ["heads that give the same labels, voxel by voxel, in all 48 orientations", _orientations(results)],
    ]
    return markdown_table(["20 heads of one scanner and 1 of another", ""], rows)


def rescans(results):
    """How volumes change at most in larger changes of the heads, in a sentence."""
    heads = results["rescans"]
    rows, found, total = [], 0, 0
    for name in next(iter(heads.values())):
        sides = [heads[head][name][side] for head in heads for side in SIDES]
        changes = [abs(side["change"]) for side in sides if side["change"] is not None]
        found, total = found + len(changes), total + len(sides)
        rows.append(f"{name} {100 * max(changes):.1f} %")
    return f"{found} of {total} hippocampi were segmented. Largest changes: {'; '.join(rows)}."


def speed(entries):
    """Ours beside hippodeep's own code on each kind of processor."""
    titles = ["processor", "", "one run of one head, s", "each further head in one run, s"]
    rows = []
    for kind, entry in entries.items():
        for name, who in (("ours", "this repository"), ("hippodeep", "hippodeep's own code")):
            rows.append([kind, who, *(f"{entry[name][f'{part}_seconds']:.1f}" for part in ("cold", "further_head"))])
        ratios = (f"**{entry['ratios'][part]:.2f}**" for part in ("cold", "further_head"))
        rows.append([kind, "ours / hippodeep's", *ratios])
    texts = [
        f"{kind}: {entry['threads']} threads; imports {entry['ours']['import_seconds']:.1f} s and loading "
        f"{entry['ours']['load_seconds']:.1f} s of a run; {entry['ours']['cold_with_picture_seconds']:.1f} s for one head with its "
        f"picture; {entry['study']['heads']} heads with pictures and page in {entry['study']['seconds']:.0f} s; peak memory "
        f"{entry['ours']['peak_memory_mib'] / 1024:.2f} GiB."
        for kind, entry in entries.items()
    ]
    return "\n\n".join(["`python -m tools.speed`, both programs in one run:", markdown_table(titles, rows), *texts])


def ordinary_cpu(results):
    """Training on a processor without bf16."""
    scores = ", ".join(f"{dice:.4f}" for dice in results["dice"])
    return (
        f"On two cores limited to {results['instructions']}, in {results['precision']}, `python train_3d.py` takes "
        f"{results['training_minutes']:.1f} minutes and scores {np.mean(results['dice']):.4f} (seeds: {scores}; "
        "`python -m tools.benchmark --only=ordinary_cpu`)."
    )


def skull(heads):
    """Synthetic heads with and without what surrounds the brain."""
    rows = {"hippocampi found": [], "Dice with the label, whole hippocampus": []}
    volumes = {}
    for name in ("whole head", "brain"):
        sides = [head[name][side] for head in heads.values() for side in SIDES]
        volumes[name] = np.array([side["mm3"] for side in sides])
        scores = np.array([side["dice"] for side in sides])
        found = f"{np.count_nonzero(volumes[name])} of {len(sides)}"
        for row, cell in zip(rows.values(), [found, f"{scores.mean():.3f} ± {spread(scores):.3f}"]):
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


def _orientations(results):
    same = list(results["orientations"].values())
    return f"{sum(n == 48 for n in same)} of {len(same)}"


def repeatability(results):
    """How volumes change in each kind of rescan, beside hippodeep where it was measured."""
    ours, theirs = results["summary"]["ours"], results["summary"].get("hippodeep")
    rows = []
    for kind, parts in ours.items():
        row = [kind, *(_change(parts[part]) for part in ("whole", "anterior", "posterior"))]
        rows.append([*row, _change(theirs[kind]["whole"])] if theirs else row)
    return markdown_table(["rescan", "whole", "anterior", "posterior", *["hippodeep: whole"] * bool(theirs)], rows)


def _change(part):
    failed = f", {part['failed']} of {part['of']} failed" * bool(part["failed"])
    return f"{part['median_percent']:.2f} ({part['percentile_95_percent']:.1f}){failed}"


def cases(kinds):
    """Dice of the model for any contrast on the held-out crops."""
    rows = []
    for kind, row in kinds.items():
        anterior, posterior = row["dice"]
        deviation = spread([np.mean(dices) for dices in row["cases"].values()])
        rows.append(
            [kind, f"**{(anterior + posterior) / 2:.4f}** ± {deviation:.4f}", f"{anterior:.4f}", f"{posterior:.4f}"]
        )
    return markdown_table(["52 held-out crops, intensities", "mean Dice", "anterior", "posterior"], rows)


def other_contrasts(results):
    """What becomes of heads of other contrasts, with the choice and with the models of T1 alone."""
    parts = {f"synthetic {name}": row for name, row in results["painted"].items()}
    parts["20 heads, inverted"] = results["inverted_heads"]
    rows = []
    for name, part in parts.items():
        row = [name]
        for choice in ("auto", "t1"):
            score = part[choice]["dice"]
            row.append(f"{part[choice]['found']} of {part[choice]['sides']}")
            row.append(f"{score['mean']:.3f}, worst {score['worst']:.3f}" if score else "–")
        rows.append([*row[:2], part["auto"]["any_contrast"], *row[2:]])
    titles = ["auto: segmented", "by the model for any contrast", "Dice", "t1: segmented", "Dice"]
    wrong, unflagged = (
        sum(part["auto"][count] for part in parts.values()) for count in ("failed", "failed_without_a_flag")
    )
    table = markdown_table(["heads", *titles], rows)
    return f"{table}\n\nWith `auto`, {wrong} results have a Dice below 0.5, {unflagged} of them without a flag."


def visits(results):
    """Volumes by contrast, of the same visits."""
    contrasts = ("T1w", "T2w", "FLAIR")
    rows = []
    for visit, of in results.items():
        cells = [" / ".join(_volume_of(of[contrast][side]) for side in SIDES) for contrast in contrasts]
        rows.append([visit, *cells])
    sides = [side for of in results.values() for by_side in of.values() for side in by_side.values()]
    red = sum("low_quality" in side["flags"] for side in sides)
    return f"{markdown_table(['left / right, mm³', *contrasts], rows)}\n\n{red} of {len(sides)} are `low_quality`."


def _volume_of(side):
    who = "any" if "any_contrast" in side["flags"] else "T1"
    return f"{side['mm3']:,.0f} ({who})" if side["mm3"] else "no result"


def kinds(results):
    """How well failures are detected, for each kind of segmentation."""
    rows = []
    for kind, row in results.items():
        parts = [f"{row['auroc_of_parts'][part]:.3f}" for part in ("confidence", "views")]
        cells = [_KINDS[kind], row["observations"], row["bad"], interval(row["auroc"], 3), *parts]
        rows.append([*cells, f"{100 * row['green_failures']:.1f} of {row['failures']}", interval(row["mae"], 3)])
    titles = [
        "segmented by",
        "segmentations",
        "with Dice < 0.75",
        "AUROC of `quality`",
        "of the confidence",
        "of the views",
    ]
    return markdown_table([*titles, "Dice < 0.7 and green, %", "mean absolute error without misuses"], rows)


def red_rescans(coarse):
    """How many coarse rescans that agree with the first segmentation are flagged low_quality."""
    parts = []
    for kind, sides in coarse.items():
        alike = [side for side in sides if side["dice"] >= 0.8 and not side["problem"]]
        red = sum("low_quality" in side["flags"] for side in alike)
        parts.append(f"with voxels of {kind} mm, {red} of {len(alike)}")
    return f"Of simulated rescans that agree with the first segmentation (Dice of 0.8 or more), these are `low_quality`: {'; '.join(parts)}."


def thresholds(results):
    """What each threshold of low_quality costs."""
    rows = []
    for level in [level for level in results["one_model"]["thresholds"] if float(level) >= 0.7]:
        costs = [results[kind]["thresholds"][level] for kind in _KINDS]
        rows.append([level, *(f"{100 * cost['good_flagged']:.1f} / {100 * cost['bad_missed']:.1f}" for cost in costs)])
    return markdown_table(["`LOW_QUALITY`", *_KINDS.values()], rows)


def judged(results):
    """What became of the heads, as they are and misused."""
    found, sides = results["heads"], results["sides"]
    flagged = {name: side["flags"] for name, side in found["sides"].items() if side["flags"] or side["problem"]}
    names = "".join(f"; {name} ({', '.join(flags)})" for name, flags in flagged.items())
    upside, elsewhere = found["upside_down"], found["elsewhere"]
    return (
        f"Spearman's correlation of quality with the Dice with hippodeep is **{interval(found['spearman'], 2)}** over "
        f"{len(found['sides'])} hippocampi. {len(flagged)} of them are flagged{names}. When the image is upside down and "
        f"the header does not say so, {upside['flagged']} of {upside['of']} are flagged or refused; when the window lies far from "
        f"a hippocampus, {elsewhere['flagged']} of {elsewhere['of']}. `--side=auto` finds the right side of {sides['right']} of "
        f"{sides['of']} crops."
    )


def flags(results):
    """The share of the clean crops and of the heads that raises each flag."""
    sides = len(results["heads"]["sides"])
    if not results["flags"]:
        return f"None of the {results['cases']} clean crops and {sides} hippocampi of heads raised a flag."
    rows = [
        [f"`{name}`", *(f"{100 * row[key]:.1f}" for key in ("cases", "heads"))]
        for name, row in results["flags"].items()
    ]
    return markdown_table(["flag", f"{results['cases']} clean crops, %", f"{sides} hippocampi of heads, %"], rows)


def interval(part, digits):
    """A mean and its interval, as in 0.031 (0.029 to 0.033)."""
    mean, low, high = (f"{value:.{digits}f}" for value in (part["mean"], *part["interval"]))
    return f"{mean} ({low} to {high})"


def uncertainty(methods):
    """The uncertainties side by side."""
    rows = []
    for name, row in methods.items():
        spread = interval(row["spread_against_error"], 2) if row["spread_against_error"] else "-"
        cells = [interval(row[key], 4) for key in ("calibration_error", "aurc_voxels", "aurc_cases")]
        rows.append([name, f"{row['dice']['mean']:.4f}", *cells, spread, f"{row['seconds']:.2f}"])
    titles = ["", "Dice", "calibration error", "AURC, voxels", "AURC, cases", "spread and error of volumes", "s a crop"]
    return markdown_table(titles, rows)


def parts(results):
    """What each part of the augmentation does: on the held-out crops, on heads, and to the time of a batch."""
    rows = []
    for name, row in results["parts"].items():
        strengths = ", ".join(f"`{option.upper()}={value:g}`" for option, value in row["strengths"].items())
        values = [name, strengths or "-"]
        for on in ("crops", "heads"):
            change = "-" if name == "default" else with_interval(row[on]["difference"])
            values += [f"{np.mean(row[on]['seeds']):.4f}", change]
        rows.append([*values, f"{results['batch_ms'][name]:.0f}"])
    titles = ["added to the default recipe", "strength", "52 crops: Dice", "difference"]
    table = markdown_table([*titles, "20 heads: Dice with hippodeep", "difference", "ms a batch"], rows)
    return f"{table}\n\nA training step takes {results['step_ms']:.0f} ms on {results['threads']} cores."

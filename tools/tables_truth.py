"""The blocks of the pages on what is true: hippocampi drawn by hand, volumes and changes that are known."""

from hippo.data.cases import case_id
from hippo.heads.anatomy import SIDES
from hippo.heads.profile import STEPS
from hippo.heads.result import PARTS
from hippo.scoring.tables import markdown_table
from tools.change import VISITS

import numpy as np

_FAR_PERCENT = 10  # an eTIV that is further from the true volume is named


def sections(published):
    """{name of a block: function that returns Markdown}."""
    return {
        "manual": lambda: truth(published("manual.json")),
        "manual_rescans": lambda: rescans(published("manual.json")["rescans"]),
        "sizes": lambda: sizes(
            published("repeatability.json")["anatomies"], published("cross_validation_heads/cross_validation.json")
        ),
        "locating": lambda: locating(*published("locating.json").values()),
        "change": lambda: change_table(published("change.json")["summary"]),
        "rescans": lambda: rescans_table(published("rescans.json")),
        "profile": lambda: profile_table(published("rescans.json")),
    }


def locating(results):
    """How well the intracranial space is measured, and hippocampi are found, in heads that the network has not seen."""
    anatomies = len({row["anatomy"] for row in results["rows"]})
    sizes = ", ".join(f"{size:g}" for size in sorted({row["size"] for row in results["rows"]}))
    images = {
        "plain head": f"heads painted from {anatomies} unseen anatomies",
        "plain head, all sizes": f"the same in three sizes (voxels of {sizes} mm)",
        "natural head": "heads with dark bone under bright fat, shading and noise",
        "plain brain": "brains alone",
        "plain brain, all sizes": "the same in three sizes",
        "natural brain": "brains alone, with shading and noise",
    }
    lines = {title: results["summary"][kind] for kind, title in images.items()}
    rows = [
        [title, *_line(line), f"{line['found'] * line['sides']:.0f} of {line['sides']}, {line['worst_mm']:.0f} mm"]
        for title, line in lines.items()
    ]
    real, sides = results["real"], len(SIDES) * len(results["real_rows"])
    name = f"{len(results['real_rows'])} real brains, beside hippodeep's eTIV"
    rows.append([name, *_line(real), f"{sides - real['not_found']} of {sides}"])
    titles = ["images", "slope", "correlation", "true / found", "hippocampi found, worst distance"]
    first, *others = results["rims_mm3"].values()
    rims = ", ".join(f"{volume / 1000:,.0f}" for volume in others)
    brightness = ", ".join(f"{100 * float(rim):.0f}" for rim in [*results["rims_mm3"]][1:])
    text = f"A rim of {brightness} % of the brain's brightness changes eTIV of a brain from "
    plain = [row for row in results["rows"] if row["kind"] == "plain head" and row["size"] == 1]
    off = {case_id(row["anatomy"]): 100 * (row["etiv_mm3"] / row["true_mm3"] - 1) for row in plain}
    far = ", ".join(f"{name} {percent:+.0f} %" for name, percent in off.items() if abs(percent) > _FAR_PERCENT)
    far = f" Off by more than {_FAR_PERCENT} % among the heads of the first row: {far or 'none'}."
    return f"{markdown_table(titles, rows)}\n\n{text}{first / 1000:,.0f} ml to {rims} ml.{far}"


def _line(line):
    return f"{line['slope']:.2f}", f"{line['r']:.3f}", f"{line['true_by_found']:.3f}"


def truth(results):
    """Ours and hippodeep's beside the drawings of experts."""
    programs = {name: results[name] for name in ("ours", "hippodeep") if name in results}
    measures = {
        "Dice with the drawing, whole hippocampus": ("all", "dice", 3),
        "the same, people below 60 years": ("young", "dice", 3),
        "the same, people of 60 years and more": ("old", "dice", 3),
        "volumes: correlation with the drawn ones": ("all", "correlation", 2),
        "volumes: slope on the drawn ones": ("all", "slope", 2),
        "volumes: ratio of the standard deviations": ("all", "spreads", 2),
        "volumes: ratio of the coefficients of variation": ("all", "relative_spreads", 2),
        "volumes: mean difference, mm³": ("all", "difference_mm3", 0),
        "volumes: standard deviation of the difference, mm³": ("all", "difference_sd_mm3", 0),
    }
    rows = [
        [title, *(interval(of[group][key], digits) for of in programs.values())]
        for title, (group, key, digits) in measures.items()
    ]
    rows.insert(3, ["worst Dice", *(f"{of['worst_dice']:.3f}" for of in programs.values())])
    people = len({row["person"] for row in results["rows"]})
    titles = [f"{len(results['rows'])} hippocampi of {people} people", "this repository", "hippodeep's own code"]
    return markdown_table(titles[: 1 + len(programs)], rows)


def rescans(results):
    """Two scans of a person, beside the two drawings."""
    names = {"ours": "this repository", "hippodeep": "hippodeep's own code", "manual": "drawn by hand, each scan anew"}
    rows = [
        [names[name], interval(of["median_percent"], 1), f"{of['largest_percent']:.1f}"] for name, of in results.items()
    ]
    return markdown_table(
        ["two scans of a person within weeks: volume of a whole hippocampus", "median change, %", "largest, %"], rows
    )


def interval(part, digits):
    """A value and its interval, as in 0.84 (0.83 to 0.85)."""
    value, low, high = (f"{number:.{digits}f}" for number in (part["mean"], *part["interval"]))
    return f"{value} ({low} to {high})"


def sizes(result, cross_validation):
    """The line through true and found volumes of painted heads, and of the crops in cross-validation."""
    true = [side["true_mm3"] for side in result["sides"]]
    ratio = result["ratio"]
    low, high = result["slope_interval"]
    painted = (
        f"{len(true) - len(result['left_out'])} hippocampi of {min(true):,} to {max(true):,} mm³ in heads painted from label maps "
        f"(left out, since its label is defective: {', '.join(result['left_out'])}): found volume = **{result['slope']:.2f}** "
        f"({low:.2f} to {high:.2f}) x true volume {result['intercept_mm3']:+.0f} mm³ (Theil and Sen), correlation "
        f"{result['correlation']:.3f}, mean difference {result['bias_mm3']:+.0f} mm³, whole Dice {result['dice']:.3f}. "
        f"Found / true: {ratio['mean']:.3f} on average, **{ratio['smallest third']:.3f}** in the smallest third, "
        f"**{ratio['largest third']:.3f}** in the largest."
    )
    volumes = [
        [case[name] for case in cross_validation["cases"].values()] for name in ("true_volume_mm3", "volume_mm3")
    ]
    true, found = np.array(volumes)  # (cases, parts)
    rows = []
    for name, parts in (("whole", [0, 1]), ("anterior", [0]), ("posterior", [1])):
        a, b = true[:, parts].sum(1), found[:, parts].sum(1)
        rows.append(
            [name, f"{np.polyfit(a, b, 1)[0]:.2f}", f"{b.std() / a.std():.2f}", f"{np.corrcoef(a, b)[0, 1]:.3f}"]
        )
    titles = [
        f"{len(true)} crops, cross-validation of the recipe for heads",
        "slope",
        "ratio of the spreads",
        "correlation",
    ]
    return f"{painted}\n\n{markdown_table(titles, rows)}"


def change_table(summary):
    """The change found against the change made."""
    rows = []
    for visit, parts in summary.items():
        cells = [interval(parts[part]["slope"], 2) for part in ("total", "anterior", "posterior")]
        cells += [interval(parts["total"][name], 2) for name in ("scatter_percent", "intercept_percent")]
        rows.append([f"{visit}: {VISITS[visit]}", *cells, str(parts["total"]["pairs"])])
    titles = [
        "second visit",
        "slope, whole",
        "anterior",
        "posterior",
        "scatter, whole, %",
        "found where nothing changed, %",
    ]
    return markdown_table([*titles, "pairs"], rows)


def rescans_table(results):
    """What rescans change in volumes."""
    rows = []
    for kind in (kind for kind in ("real", "simulated") if kind in results):
        of = results[kind]
        cells = [f"{v['median']:.1f} ({v['percentile_95']:.1f}; {v['largest']:.1f})" for v in of["volumes"].values()]
        rows.append([f"{kind}, {of['pairs']} pairs of hippocampi", *cells])
    return markdown_table(["rescans", *(f"{part}, %" for part in PARTS)], rows)


def profile_table(results):
    """How steady profiles are in rescans."""
    rows = []
    for kind in (kind for kind in ("real", "simulated") if kind in results):
        of, areas = results[kind], results[kind]["areas_percent"]
        alike = of["correlation"]
        places = [f"{np.mean(areas[i : i + 4]):.1f}" for i in range(0, STEPS, 4)]
        cells = [f"{alike['median']:.4f} ({alike['percentile_5']:.3f}; {alike['lowest']:.3f})"]
        cells += [f"{of[name]['median']:.1f} ({of[name]['percentile_95']:.1f})" for name in ("length_mm", "border_mm")]
        rows.append([f"{kind}, {of['pairs']} pairs", *cells, *places])
    titles = ["rescans", "correlation of the areas", "length, mm", "border, mm"]
    return markdown_table(titles + [f"fifth {i}, %" for i in range(1, 6)], rows)

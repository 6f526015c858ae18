"""The blocks of the pages on quality, flags and uncertainty."""

from hippo.scoring.tables import markdown_table

_KINDS = {"both": "both models of T1", "one": "a 3D model alone", "any": "the model for any contrast"}


def sections(published):
    """{name: function that returns Markdown}."""
    return {
        "quality": lambda: kinds(published("quality.json")["kinds"]),
        "quality-degradations": lambda: degradations(published("quality.json")["kinds"]["both"]["degradations"]),
        "quality-thresholds": lambda: thresholds(published("quality.json")["kinds"]),
        "quality-heads": lambda: heads(published("quality.json")),
        "flags": lambda: flags(published("quality.json")["flags"]),
        "uncertainty": lambda: uncertainty(published("uncertainty.json")["methods"]),
    }


def kinds(results):
    """How well the Dice is predicted, for each set of coefficients."""
    rows = []
    for kind, row in results.items():
        values = [_KINDS[kind], row["observations"], row["failures"]]
        values += [interval(row[name], digits) for name, digits in (("mae", 3), ("mae_of_misuses", 3), ("auroc", 3))]
        rows.append([*values, f"{row['auroc_of_confidence']:.3f}"])
    titles = ["segmented by", "segmentations", "with Dice < 0.75", "mean absolute error, without misuses"]
    titles += ["mean absolute error, misuses", "AUROC of `quality` for Dice < 0.75", "AUROC of the models' confidence"]
    return markdown_table(titles, rows)


def degradations(results):
    """The Dice of each kind of degradation, and the predicted one."""
    rows = [
        [name, row["n"], *(f"{row[key]:.3f}" for key in ("dice", "predicted", "mae", "of_a_constant"))]
        for name, row in results.items()
    ]
    titles = [
        "kind",
        "segmentations",
        "mean Dice",
        "mean `quality`",
        "mean absolute error",
        "the same for the best constant",
    ]
    return markdown_table(titles, rows)


def thresholds(results):
    """What each threshold of low_quality costs."""
    rows = []
    for level in results["both"]["thresholds"]:
        costs = [results[kind]["thresholds"][level] for kind in _KINDS]
        cells = [f"{100 * cost[name]:.1f}" for cost in costs for name in ("good_flagged", "bad_missed")]
        rows.append([level, *cells])
    titles = [f"{_KINDS[kind]}: {what}, %" for kind in _KINDS for what in ("good flagged", "bad missed")]
    return markdown_table(["`LOW_QUALITY`", *titles], rows)


def heads(results):
    """What became of the heads, as they are and misused."""
    found, sides = results["heads"], results["sides"]
    flagged = {name: side["flags"] for name, side in found["sides"].items() if side["flags"] or side["problem"]}
    names = "; ".join(f"{name} ({', '.join(flags)})" for name, flags in flagged.items())
    upside, elsewhere = found["upside_down"], found["elsewhere"]
    return (
        f"Spearman's correlation of quality with the Dice with hippodeep is **{interval(found['spearman'], 2)}** over "
        f"{len(found['sides'])} hippocampi. {len(flagged)} of them are flagged: {names}. When the image is upside down and "
        f"the header does not say so, {upside['flagged']} of {upside['of']} are flagged or refused; when the window lies far from "
        f"a hippocampus, {elsewhere['flagged']} of {elsewhere['of']}. `--side=auto` finds the right side of {sides['right']} of "
        f"{sides['of']} crops."
    )


def flags(results):
    """The share of the cases and of the heads that raises each flag."""
    rows = [[f"`{name}`", *(f"{100 * row[key]:.1f}" for key in ("cases", "heads"))] for name, row in results.items()]
    return markdown_table(["flag", "260 crops, %", "40 hippocampi of 20 heads, %"], rows)


def interval(part, digits):
    """A mean and its interval, as in 0.031 (0.029 to 0.033)."""
    mean, low, high = (f"{value:.{digits}f}" for value in (part["mean"], *part["interval"]))
    return f"{mean} ({low} to {high})"


def uncertainty(methods):
    """The uncertainties side by side."""
    rows = []
    for name, row in methods.items():
        spread = interval(row["spread_against_error"], 2) if row["spread_against_error"] else "-"
        cells = [interval(row[key], digits) for key, digits in (("dice", 4), ("calibration_error", 4))]
        cells += [interval(row["aurc_voxels"], 4), interval(row["aurc_cases"], 4), spread, f"{row['seconds']:.2f}"]
        rows.append([name, *cells])
    titles = ["", "Dice", "calibration error", "AURC, voxels", "AURC, cases", "spread and error of volumes", "s a crop"]
    return markdown_table(titles, rows)

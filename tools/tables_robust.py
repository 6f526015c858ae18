"""The blocks of the pages on the models for heads: cross-validation, repeatability, sizes, other contrasts."""

from hippo.scoring.statistics import bootstrap
from hippo.scoring.tables import markdown_table, with_interval
from tools.tables_3d import cross_validation_table

import numpy as np


def sections(published):
    """{name: function that returns Markdown}."""
    return {
        "cross-validation-heads": lambda: both_recipes(published),
        "robust-parts": lambda: parts(published("robust_parts.json")),
        "repeatability": lambda: repeatability(published("repeatability.json")),
        "sizes": lambda: sizes(published("repeatability.json")["anatomies"]),
        "any_contrast_cases": lambda: cases(published("any_contrast.json")["cases"]),
        "any_contrast_heads": lambda: heads(published("any_contrast.json")),
    }


def both_recipes(published):
    """The cross-validation of the heads recipe, and its difference, case by case, from the default one."""
    heads, crops = (published(f"{folder}cross_validation.json") for folder in ("cross_validation_heads/", ""))
    members = [list(result["members"].values()) for result in (heads, crops)]
    pairs = {f"{who} alone": [row[i]["dice"] for row in members] for i, who in enumerate(("3D", "2D"))}
    pairs["both together"] = [{name: c["dice"] for name, c in result["cases"].items()} for result in (heads, crops)]
    changes = []
    for who, (ours, theirs) in pairs.items():
        change = bootstrap([np.mean(ours[name]) - np.mean(theirs[name]) for name in ours])
        changes.append(f"{who} {with_interval(change)}")
    table = cross_validation_table(heads, published.references)
    return f"{table}\n\nDifference from the default recipe, case by case: {'; '.join(changes)}."


def repeatability(results):
    """How volumes change in each kind of rescan, beside hippodeep where it was measured."""
    ours, theirs = results["summary"]["ours"], results["summary"].get("hippodeep")
    rows = []
    for kind, parts in ours.items():
        row = [
            kind,
            *(_change(parts[part]) for part in ("whole", "anterior", "posterior")),
            f"{parts['whole']['dice']:.3f}",
        ]
        rows.append([*row, _change(theirs[kind]["whole"]), f"{theirs[kind]['whole']['dice']:.3f}"] if theirs else row)
    titles = ["rescan", "whole", "anterior", "posterior", "Dice, whole"]
    return markdown_table(titles + ["hippodeep: whole", "hippodeep: Dice, whole"] * bool(theirs), rows)


def _change(part):
    failed = f", {part['failed']} of {part['of']} failed" * bool(part["failed"])
    return f"{part['median_percent']:.2f} ({part['percentile_95_percent']:.1f}){failed}"


def sizes(result):
    """The line through true and found volumes."""
    true = [side["true_mm3"] for side in result["sides"]]
    ratio = result["ratio"]
    return (
        f"{len(true)} hippocampi of {min(true):,} to {max(true):,} mm³: found volume = **{result['slope']:.2f}** x true volume "
        f"{result['intercept_mm3']:+.0f} mm³, correlation {result['correlation']:.3f}, mean difference "
        f"{result['bias_mm3']:+.0f} mm³, whole Dice {result['dice']:.3f}. Found / true: {ratio['mean']:.3f} on average, "
        f"**{ratio['smallest third']:.3f}** in the smallest third, **{ratio['largest third']:.3f}** in the largest."
    )


def cases(kinds):
    """Dice of the model for any contrast on the held-out crops."""
    rows = []
    for kind, row in kinds.items():
        anterior, posterior = row["dice"]
        spread = np.std([np.mean(dices) for dices in row["cases"].values()])
        rows.append(
            [kind, f"**{(anterior + posterior) / 2:.4f}** ± {spread:.4f}", f"{anterior:.4f}", f"{posterior:.4f}"]
        )
    return markdown_table(["52 held-out crops, intensities", "mean Dice", "anterior", "posterior"], rows)


def heads(results):
    """What becomes of heads of other contrasts, with the choice and with the models of T1 alone."""
    parts = {f"synthetic {name}": row for name, row in results["painted"].items()}
    parts["20 heads, inverted"] = results["inverted_heads"]
    rows = []
    for name, part in parts.items():
        for choice in ("auto", "t1"):
            row = part[choice]
            score = f"{row['dice']['mean']:.3f}, worst {row['dice']['worst']:.3f}" if row["dice"] else "-"
            found = f"{row['found']} of {row['sides']}"
            failed = f"{row['failed']} ({row['failed_without_a_flag']} without a flag)"
            rows.append([name, choice, found, str(row["any_contrast"]), score, failed])
    titles = [
        "heads",
        "`--contrast`",
        "segmented",
        "by the model for any contrast",
        "whole Dice",
        "wrong (Dice < 0.5)",
    ]
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

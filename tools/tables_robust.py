"""The blocks of the pages on other contrasts, from results/any_contrast.json."""

from hippo.scoring.tables import markdown_table

import numpy as np


def sections(published):
    """{name: function that returns Markdown}."""
    return {
        "any_contrast_cases": lambda: cases(published("any_contrast.json")["cases"]),
        "any_contrast_heads": lambda: heads(published("any_contrast.json")),
    }


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
    parts = {f"painted {name}": row for name, row in results["painted"].items()}
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
        "of them wrong (Dice < 0.5)",
    ]
    return markdown_table(titles, rows)

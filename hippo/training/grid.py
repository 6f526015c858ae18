"""The axes of a grid search, and the comparison of its points."""

from hippo.data.cases import labels_of
from hippo.scoring.statistics import bootstrap, paired_differences
from hippo.scoring.tables import markdown_table, with_interval

import numpy as np

GRID = ("base_channels", "unet_depth", "learning_rate", "weight_decay")
GRID += ("use_inr", "inr_hidden_dim", "deep_supervision", "attention", "model")
CUSTOM = ("UNet3DWithINR", "UNetnnUNetWithINR")  # networks whose sizes a grid sets
PLAIN = (False, None, False, "none", None)  # the last five of GRID: such a network with nothing added


def search_groups(found):
    """Groups the points of a search by configuration, each with all its seeds: {values of GRID: {"label", "runs":
    [entry, ...]}}.

    found: {key: entry} as in small_models_results.json; failed points are left out.
    """
    good = [entry for entry in found.values() if "error" not in entry]
    # for searches from before attention and model were axes
    configs = [{"attention": "none", "model": None, **entry["config"]} for entry in good]
    varied = [name for name in (*GRID[:4], "epochs") if len({config.get(name) for config in configs} - {None}) > 1]
    groups = {}
    for entry, config in zip(good, configs):
        if config["model"] or config["attention"] != "none":
            label = config["model"] or config["attention"].upper()
        else:
            label = f"INR-{config['inr_hidden_dim']}" if config["use_inr"] else "No INR"
        label += ", deep supervision" * config["deep_supervision"]
        known = [name for name in varied if config.get(name) is not None]
        label += "".join(f", {name.replace('_', ' ')} {config[name]:g}" for name in known)
        groups.setdefault(tuple(config[name] for name in GRID), {"label": label, "runs": []})["runs"].append(entry)
    return groups


def search_comparisons(groups):
    """Returns {values of GRID: difference of mean Dice from the same network with nothing added}. Other networks are
    compared with the first such plain network.

    A difference is statistics.bootstrap of the pairs by case and seed, and "seeds", the number of seeds.
    Configurations that share no seed with the plain network are left out. The intervals hold jointly at 95 %
    (Bonferroni correction).
    """
    pairs, first = {}, next((key for key in groups if key[4:] == PLAIN), ())
    for key, part in groups.items():
        plain = groups.get(first if key[-1] else (*key[:4], *PLAIN))
        seeds = {run["seed"] for run in part["runs"]}
        if plain and plain is not part and any(run["seed"] in seeds for run in plain["runs"]):
            pairs[key] = paired_differences(part["runs"], plain["runs"])
    level = 1 - 0.05 / max(len(pairs), 1)
    return {key: {**bootstrap(values, level), "seeds": len(values)} for key, values in pairs.items()}


def search_table(found):
    """Returns the Markdown table of a search: volumes, final weights, mean ± standard deviation over cases."""
    groups = search_groups(found)
    comparisons = search_comparisons(groups)
    count = len(next(iter(groups.values()))["runs"][0]["dice"]) if groups else 2
    header = ["configuration", "parameters", *(f"Dice {name}" for name in labels_of(count).values())]
    header += ["mean Dice, each seed", "NSD at 1 mm", "minutes a run", "difference from No INR (interval)"]
    rows = []
    for key, part in groups.items():
        runs = part["runs"]
        means, spreads = (np.mean([run[name] for run in runs], axis=0) for name in ("dice", "dice_std"))
        rows.append(
            [
                part["label"],
                f"{runs[0]['parameters']:,}",
                *(f"{mean:.4f} ± {spread:.3f}" for mean, spread in zip(means, spreads)),
                ", ".join(f"{np.mean(run['dice']):.4f}" for run in runs),
                f"{np.mean([run['nsd_1mm'] for run in runs]):.4f}",
                f"{np.mean([run['training_time'] for run in runs]) / 60:.1f}",
                with_interval(comparisons[key]) if key in comparisons else "–",
            ]
        )
    return markdown_table(header, rows)


def search_conclusion(found):
    """Returns sentences that say which configurations differ from the network with neither INR nor deep supervision."""
    groups = search_groups(found)
    comparisons = search_comparisons(groups)
    if not comparisons:
        return "There is no pair of points with and without INR to compare yet."
    lines = []
    for key, part in comparisons.items():
        low, high = part["interval"]
        verdict = "lower" if high < 0 else "higher" if low > 0 else "no difference was found"
        lines.append(f"{groups[key]['label']}: {verdict}, {with_interval(part)}")
    seeds = sorted({part["seeds"] for part in comparisons.values()})
    over = "cases only, for there is one seed" if seeds == [1] else f"cases and {' or '.join(map(str, seeds))} seeds"
    over += f"; all {len(lines)} together" * (len(lines) > 1)
    return (
        f"Mean Dice against the U-Net with nothing added, paired by case and seed (95 % intervals over {over}): "
        f"{'; '.join(lines)}."
    )

"""The blocks on models together and side by side, others' figures, speed and memory, studies, the page, and fine-tuning."""

from hippo.scoring.statistics import bootstrap
from hippo.scoring.tables import markdown_table, with_interval
from tools.tables_training import DEFAULT_SEEDS, cross_validation_table, mean_dice

import numpy as np

_INR = " + INR"  # behind the name of a model that was measured with the INR head


def sections(published):
    """{name of a block: function that returns Markdown}."""
    return {
        "together": lambda: ensemble(
            published("ensemble/metrics.json"), published("ablations/three_seeds/metrics.json")
        ),
        "errors": lambda: errors_table(published("cross_validation.json")["mean"]),
        "cross-validation-heads": lambda: cross_validation_table(
            published("cross_validation_heads/cross_validation.json"), published.references
        ),
        "both-recipes": lambda: both_recipes(published),
        "comparison-3d": lambda: comparison_table(published),
        "2d-3d": lambda: both_table(published),
        "original": lambda: original_table(published),
        "models": lambda: models_table(published("benchmark.json")["models"], published("ordinary_cpu.json")["models"]),
        "peers": lambda: peers_table(published("benchmark.json")),
        "cohort": lambda: cohort(published("cohort.json")),
        "web": lambda: web(published("web.json")),
        "fine_tuning": lambda: fine_tuning(published("fine_tuning.json")),
    }


def ensemble(metrics, several):
    """Both runs and their average, and the average of several seeds of the first, in one sentence."""
    first, second = (mean_dice(part["dice"]) for part in metrics["members"].values())
    both, seeds = (mean_dice(part["mean"]["dice"]) for part in (metrics, several))
    return (
        f"On the 52 held-out cases: 3D {first}, 2D {second}, both together {both}; {len(several['members'])} seeds of "
        f"the 3D run together {seeds}."
    )


def errors_table(mean):
    """What errors of the outline and of the border between the parts cost, in the cross-validation of both models."""
    names = {
        "the two parts": "dice",
        "the whole hippocampus, as one label": "dice_whole",
        "the two parts, were the border right wherever truth and prediction overlap": "dice_true_border",
    }
    return markdown_table(["what is scored", "mean Dice"], [[text, mean_dice(mean[n])] for text, n in names.items()])


def both_recipes(published):
    """The differences, case by case, of the cross-validation of the heads recipe from that of the default one."""
    heads, crops = (published(f"{folder}cross_validation.json") for folder in ("cross_validation_heads/", ""))
    members = [list(result["members"].values()) for result in (heads, crops)]
    pairs = {f"{who} alone": [row[i]["dice"] for row in members] for i, who in enumerate(("3D", "2D"))}
    pairs["both together"] = [{name: c["dice"] for name, c in result["cases"].items()} for result in (heads, crops)]
    changes = []
    for who, (ours, theirs) in pairs.items():
        change = bootstrap([np.mean(ours[name]) - np.mean(theirs[name]) for name in ours])
        changes.append(f"{who} {with_interval(change)}")
    return f"Difference from the default recipe, case by case: {'; '.join(changes)}."


def comparison_table(published):
    """Our figures beside those that others published."""
    references, folds = published.references, published("cross_validation.json")
    runs = [published(f"{name}/metrics.json") for name in DEFAULT_SEEDS]
    dice, same = np.array([metrics["mean"]["dice"] for metrics in runs]), references["same_52_cases"]
    protocol = f"{len(runs[0]['cases'])} held-out cases, final weights, mean of {len(runs)} seeds"
    rows = [["**this repository**, 3D", protocol, f"**{dice.mean():.4f}** ({_both(dice.mean(0))})"]]
    rows.append([same["who"], same["protocol"], f"{same['mean_dice']:.4f}"])
    for name, part in (("3D", next(iter(folds["members"].values()))), ("3D and 2D together", folds)):
        dice, protocol = part["mean"]["dice"], f"5-fold cross-validation, {len(folds['cases'])} cases"
        rows.append([f"**this repository**, {name}", protocol, f"**{mean_dice(dice)}** ({_both(dice)})"])
    repeated = published("hippo_net.json")
    kinds = {
        "first": "5-fold cross-validation, the first 200 cases",
        "last": "the last 60 cases, trained on the first 200",
    }
    for key, protocol in kinds.items():
        dice = repeated[key]["mean"]["dice"]
        rows.append(["**this repository**, 3D", protocol, f"**{mean_dice(dice)}** ({_both(dice)})"])
    rows += [[r["who"], r["protocol"], r["dice"]] for r in references["others"]]
    return markdown_table(["who", "protocol", "mean Dice (anterior / posterior)"], rows)


def _both(dice):
    return " / ".join(f"{value:.4f}" for value in dice)


def both_table(published):
    """The three runs side by side, with what they cost (results/benchmark.json)."""
    costs, folders = (
        published("benchmark.json")["runs"],
        ("results_hippocampus-3D", "checkpoints-2d-64", "checkpoints-2d"),
    )
    costs = [costs[f"{folder}/last.pth"] for folder in folders]
    runs = [(*published.run(name), cost) for name, cost in zip(("3d", "2d_short", "2d"), costs)]
    rows = []

    def row(text, cell):
        rows.append([text, *(cell(*run) for run in runs)])

    def dice(metrics, config, cost):
        return f"{mean_dice(metrics['mean']['dice'])} ({_both(metrics['mean']['dice'])})"

    row("mean Dice (anterior / posterior)", dice)
    names = ("NSD at 1 mm", "nsd_1mm", 4), ("NSD at 2 mm", "nsd_2mm", 4), ("HD95 in mm", "hd95_mm", 2)
    for text, name, digits in names:
        row(f"mean {text}", lambda m, c, cost, name=name, digits=digits: f"{np.mean(m['mean'][name]):.{digits}f}")
    row("parameters", lambda m, c, cost: f"{c['parameters']:,}")
    row("minutes of training, validation included", lambda m, c, cost: f"{m['training_minutes']:.1f}")
    row("seconds to predict a volume", lambda m, c, cost: f"{cost['predict']['seconds_per_volume']:.2f}")
    row("peak memory of training", lambda m, c, cost: f"{cost['train']['peak_memory_mib']:,} MiB")
    return markdown_table(["", "3D", "2D, minutes", "2D, an hour"], rows)


def original_table(published):
    """Figures of the original's documents beside what was measured or counted here."""
    (metrics, config), metrics_2d = published.run("3d"), published("2d/metrics.json")
    train, val = (len(config["data"][f"{part}_cases"]) for part in ("train", "val"))
    dice, nsd_2mm = np.mean(metrics["mean"]["dice"]), np.mean(metrics["mean"]["nsd_2mm"])
    slices = (
        f"{100 * np.mean(metrics_2d['slices']['dice_original']):.1f} % per slice by the original's definition, "
        f"{100 * np.mean(metrics_2d['mean']['dice']):.1f} % for whole volumes"
    )
    rows = [
        ["98.9 % Dice in 3D", f"{100 * dice:.1f} % Dice; {100 * nsd_2mm:.1f} % NSD at 2 mm"],
        ["82.9 % Dice in 2D", slices],
        ["+16 % from 2D to 3D", "not one measure"],
        ["about 12,000 training slices", f"{(train + val) * 45:,} slices; {train * 45:,} of them for training"],
        ["394 volumes", f"{train + val} labelled volumes (the archive has 130 more without labels)"],
    ]
    return markdown_table(["the original documents", "measured or counted here"], rows)


def models_table(with_bf16, without):
    """Parameters, multiply-adds and latency of each model, on a processor with bf16, where it was measured, and without.

    Behind each time stands that of the same model with the INR head.
    """
    rows = []
    for key in ("2d", "3d"):
        fast = {name: milliseconds for name, _, _, milliseconds in with_bf16[key]}
        slow = {name: milliseconds for name, _, _, milliseconds in without[key]}
        for name, parameters, multiply_adds, _ in without[key]:
            if not name.endswith(_INR):
                times = (ms.get(model, "–") for ms in (fast, slow) for model in (name, f"{name}{_INR}"))
                rows.append([name, f"{parameters:,}", f"{multiply_adds / 1e9:.2f}", *times])
    header = ["model", "parameters", "G multiply-adds", "ms with bf16", "with INR", "ms without bf16", "with INR"]
    return markdown_table(header, rows)


def peers_table(benchmark):
    """Our networks beside nnU-Net's and MONAI's."""
    reference_seconds = benchmark["peers"]["nnU-Net's PlainConvUNet, 32-64-128-256 channels"][
        "seconds_per_training_volume"
    ]
    rows = []
    for name, peer in benchmark["peers"].items():
        rows.append(
            [
                name,
                f"{peer['precision']}, {peer['batch']}",
                f"{peer['seconds_per_training_volume']:.3f}",
                f"{reference_seconds / peer['seconds_per_training_volume']:.1f}",
                f"{peer['peak_memory_mib']:,}",
            ]
        )
    header = [
        "network",
        "precision, batch",
        "s a training volume",
        "times nnU-Net's training speed",
        "peak memory in MiB",
    ]
    return markdown_table(header, rows)


def cohort(results):
    """Times, memory, and whether the ways to the same files give the same."""
    heads, killed, shards, many = (results[name] for name in ("heads", "killed", "shards", "many"))
    scans, memory = zip(*many["memory_mib"])
    rows = [
        [f"{heads['n']} heads, {name} {'process' if name == '1' else 'processes'}", f"{seconds:.0f} s"]
        for name, seconds in heads["seconds"].items()
    ]
    moments = ", ".join(f"{moment:.0f}" for moment in killed["after_seconds"])
    rows += [
        [f"killed after {moments} s, and started again: the same files", _yes(killed["equal"])],
        [
            f"{shards['n']} shards at once on two cores, {shards['seconds']:.0f} s: the same files",
            _yes(shards["equal"]),
        ],
        [f"{many['n']:,} scans (links to the {heads['n']})", f"{many['seconds'] / 60:.0f} min"],
        ["memory after a tenth of the scans, and the maximum after that", _growth(scans, memory, many["n"])],
        ["the same command again, with all scans done", f"{many['seconds_if_done']:.0f} s"],
        ["their `report.html`", f"{many['page_mb']:.0f} MB"],
        ["opened in Chromium, then sorted", "{opened_seconds:.1f} s, {sorted_seconds:.1f} s".format(**many["page"])],
    ]
    return markdown_table(["with pictures and page, two cores", ""], rows)


def web(results):
    """Times, many uploads, and what hostile ones came to."""
    heads, page, at_once = results["heads"], results["page"], results["at_once"]
    row, requests, mutated = results["in_a_row"], results["requests"], results["mutated"]
    counts, memory = zip(*row["memory_mib"])
    statuses = ", ".join(f"{status}: {n:,}" for status, n in sorted(requests["statuses"].items()))
    states = mutated["states"]
    mixed_up = at_once["mixed_up"] + row["mixed_up"]
    rows = [
        [f"from choosing a 1 mm head to its table, mean of {page['n']}", _mean(page["table_seconds"])],
        ["until the labels appear in the viewer, without a GPU", _mean(page["labels_seconds"])],
        [
            f"from an upload to its result by the API, mean of {heads['n']}",
            f"{heads['mean_seconds']:.1f} s, worst {heads['worst_seconds']:.1f}",
        ],
        [
            f"{at_once['n']} uploads at once",
            f"{at_once['statuses']['202']} done, {at_once['statuses']['503']} rejected because the queue was full, none lost",
        ],
        ["memory at most meanwhile, both processes", f"{at_once['peak_mib'] / 1024:.1f} GiB"],
        [f"{row['n']} jobs, one after the other: memory", _growth(counts, memory, row["n"])],
        ["results with the volumes of another head", str(mixed_up)],
        [f"{requests['n']:,} requests of schemathesis, by status", f"{statuses}; tracebacks: {requests['tracebacks']}"],
        ["all answers are as the API describes them", "NO" if requests["failed"] else "yes"],
        [
            f"{mutated['n']} broken heads",
            f"{states['done']} done, {states['failed']} refused, {states['fault of the program']} faults",
        ],
        [
            "uploads left after all, and files once the server had ended",
            f"{results['left']}, {results['left_at_the_end']}",
        ],
    ]
    return markdown_table(["measured on two cores", ""], rows)


def fine_tuning(results):
    """Dice with the masks, from scratch and fine-tuned, and the differences from the shipped model and from each other."""
    shipped, found = results["shipped"], {}
    rows = [["the shipped model as it is", "0", f"{np.mean([*shipped.values()]):.3f}", "–"]]
    for way, sizes in results["runs"].items():
        for count, seeds in sizes.items():
            dice = found[way, count] = np.array([_of_persons(run["dice"]) for run in seeds.values()])  # (seeds, people)
            each = ", ".join(f"{mean:.3f}" for mean in dice.mean(1))
            rows.append([way, count, each, with_interval(bootstrap(dice - _of_persons(shipped)), 3)])
    header = ["", "heads learned from", "Dice, each seed", "difference from the shipped model (interval)"]
    scratch, tuned = results["runs"]
    changes = [
        f"{count} heads {with_interval(bootstrap(found[tuned, count] - found[scratch, count]), 3)}"
        for count in results["runs"][tuned]
    ]
    return f"{markdown_table(header, rows)}\n\nFine-tuned minus from scratch: {'; '.join(changes)}."


def _of_persons(scores):
    """The mean of both sides of each person, of {case: Dice}."""
    persons = {}
    for case, value in scores.items():
        persons.setdefault(case.partition("_hemi-")[0], []).append(value)
    return np.array([np.mean(values) for _, values in sorted(persons.items())])


def _yes(equal):
    return "yes, byte for byte, except for times" if equal else "NO"


def _mean(seconds):
    return f"{np.mean(seconds):.1f} s, worst {max(seconds):.1f}"


def _growth(counts, memory, total):
    """The memory after a tenth, and the most after that."""
    first = next(i for i, count in enumerate(counts) if count >= total / 10)
    return f"{memory[first] / 1024:.2f} GiB, {max(memory[first:]) / 1024:.2f} GiB"

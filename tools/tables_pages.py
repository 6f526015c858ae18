"""The blocks of the README, and those on models, speed and memory, on studies, on the page in the browser and on fine-tuning."""

import csv
import io

from hippo.scoring.statistics import bootstrap
from hippo.scoring.tables import markdown_table, with_interval
from tools.tables_runs import DEFAULT_SEEDS, mean_dice

import numpy as np


def sections(published):
    """{name of a block: function that returns Markdown}."""
    return {
        "glance": lambda: glance(published),
        "sample": lambda: sample(published("sample.json")),
        "accuracy": lambda: accuracy(published),
        "models": lambda: models_table(published("benchmark.json")["models"], published("ordinary_cpu.json")["models"]),
        "peers": lambda: peers_table(published("benchmark.json")),
        "costs": lambda: costs_table(published("benchmark.json")),
        "cohort": lambda: cohort(published("cohort.json")),
        "web": lambda: web(published("web.json")),
        "fine_tuning": lambda: fine_tuning(published("fine_tuning.json")),
    }


def glance(published):
    """What goes in, what comes out, how good, how fast, and the command."""
    folds, heads, ordinary = (published(f"{name}.json") for name in ("cross_validation", "heads", "ordinary_cpu"))
    batch = [part["speed"]["seconds_a_head"]["mean"] for part in (heads, ordinary)]
    count = len(heads["heads"]) - 1  # single runs: of all heads but hippodeep's example
    single = [part["speed"]["single_runs_seconds"] / count for part in (heads, ordinary)]
    minutes = np.mean(next(iter(folds["members"].values()))["training_minutes"])
    silver = heads["summary"]["dice"]
    rows = [
        [
            "**In**",
            "a T1-weighted MRI of a head (`.nii`, `.nii.gz`, `.mgz`, `.mgh`, `.hdr`/`.img`) in any orientation, a folder, or a BIDS study",
        ],
        [
            "**Out**",
            "labels on the scan's own grid, a picture to check them by, a table of volumes with intracranial volume (eTIV), quality and flags",
        ],
        [
            "**How good**",
            f"Dice (overlap, 1 is perfect) {folds['interval']['mean']:.4f} on {len(folds['cases'])} hand-labelled crops around "
            f"one hippocampus, cross-validated "
            f"(nnU-Net: {published.references['cross_validation']['mean_dice']:.4f}); "
            f"{silver['mean']:.2f} ± {silver['std']:.2f} with another network's masks on {len(heads['heads'])} whole heads",
        ],
        [
            "**How fast**",
            f"on two CPU cores with bf16 (16-bit arithmetic of recent processors): one head {single[0]:.0f} s, {batch[0]:.0f} s "
            f"each in a batch, training {minutes:.0f} min; without bf16: {single[1]:.0f} s, {batch[1]:.0f} s, "
            f"{ordinary['training_minutes']:.0f} min; no GPU is needed",
        ],
        ["**Run**", "`python predict.py head.nii.gz`"],
    ]
    return markdown_table(["", ""], rows)


def sample(rows):
    """The first columns of volumes.csv of one head."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return f"```text\n{text.getvalue()}```"


def accuracy(published):
    """The main figures, each with its peer."""
    folds, heads = published("cross_validation.json"), published("heads.json")
    peers, silver = published.references, heads["summary"]["dice"]
    nnunet = f"nnU-Net {peers['cross_validation']['mean_dice']:.4f}; difference "
    crops = f"{len(folds['cases'])} crops, 5-fold cross-validation"
    rows = []
    for name, part in (("3D alone", next(iter(folds["members"].values()))), ("3D and 2D together", folds)):
        cost = f"{np.mean(part['training_minutes']):.0f} min a fold"
        score = f"**{part['interval']['mean']:.4f}**"
        rows.append([f"{name}, {crops}", score, nnunet + with_interval(part["difference"]), cost])
    several = published("cross_validation_ensemble/cross_validation.json")
    name = f"3D and 2D together, {len(several['constants']['SEEDS'])} seeds of each, {crops}"
    cost = f"{np.mean(several['training_minutes']):.0f} min a fold on one core without bf16"
    rows.append([name, f"**{several['interval']['mean']:.4f}**", nnunet + with_interval(several["difference"]), cost])
    runs = [published.run(name)[0] for name in DEFAULT_SEEDS]
    scores = [np.mean(metrics["mean"]["dice"]) for metrics in runs]
    spread = f"**{mean_dice(scores)}** (seeds {min(scores):.4f} to {max(scores):.4f})"
    cost = f"{np.mean([metrics['training_minutes'] for metrics in runs]):.1f} min"
    held_out = f"3D alone, {len(runs[0]['cases'])} held-out crops, {len(runs)} seeds"
    rows.append([held_out, spread, f"nnU-Net {peers['same_52_cases']['mean_dice']:.4f}", cost])
    whole = f"{len(heads['heads'])} whole heads of two scanners, whole hippocampus"
    rows.append([whole, f"{silver['mean']:.3f} ± {silver['std']:.3f}", "hippodeep's masks: a silver standard", "–"])
    return markdown_table(["what is scored", "mean Dice", "compared with", "training on two cores"], rows)


def models_table(with_bf16, without):
    """Parameters, multiply-adds and latency of each model, on a processor with bf16, where it was measured, and without."""
    rows = []
    for shape, key in (("128 x 128", "2d"), ("40 x 56 x 40", "3d")):
        fast = {name: milliseconds for name, _, _, milliseconds in with_bf16[key]}
        for name, parameters, multiply_adds, milliseconds in without[key]:
            row = [name, f"{parameters:,}", shape, f"{multiply_adds / 1e9:.2f} G", fast.get(name, "–"), milliseconds]
            rows.append(row)
    header = ["model", "parameters", "input", "multiply-adds", "ms on two cores with bf16", "ms without bf16"]
    return markdown_table(header, rows)


def peers_table(benchmark):
    """Our networks beside nnU-Net's and MONAI's."""
    reference_seconds = benchmark["peers"]["nnU-Net's PlainConvUNet, 32-64-128-256 channels"][
        "seconds_per_training_volume"
    ]
    rows = []
    for name, peer in benchmark["peers"].items():
        most, rate = benchmark["products"][peer["precision"]], peer["training_gflops_per_second"]
        rows.append(
            [
                name,
                f"{peer['parameters']:,}",
                f"{peer['precision']}, {peer['batch']}",
                f"{peer['seconds_per_training_volume']:.3f}",
                f"{reference_seconds / peer['seconds_per_training_volume']:.1f}",
                f"{peer['seconds_per_predicted_volume']:.3f}",
                f"{peer['peak_memory_mib']:,}",
                f"{rate} of {most} ({100 * rate / most:.0f} %)",
            ]
        )
    header = ["network", "parameters", "precision, batch", "s a training volume", "times nnU-Net's training speed"]
    last = ["s a predicted volume", "peak memory in MiB", "GFLOP/s in training, and in a matrix product"]
    return markdown_table([*header, *last], rows)


def costs_table(benchmark):
    """Slices and metrics, beside the usual way of making them."""
    slices, metrics = benchmark["slices"], benchmark["metrics"]
    rows = [
        [
            f"the slices of {slices['volumes']} volumes, in s",
            f"{slices['data_aug_seconds']:.0f} (`data_aug.py`, two cores)",
            f"{slices['plain_loop_seconds']:.0f} (a loop of scikit-image's `resize` and `warp`, one process)",
            slices["ratio"],
        ],
        [
            "NSD at two tolerances and HD95 of both labels, in ms a case",
            metrics["ours_milliseconds"],
            f"{metrics['surface_distance_milliseconds']} (the package `surface-distance`)",
            metrics["ratio"],
        ],
    ]
    return markdown_table(["", "this repository", "alternative", "speed-up"], rows)


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

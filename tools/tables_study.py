"""The blocks of the pages on studies, on the page in the browser, and on fine-tuning."""

from hippo.scoring.statistics import bootstrap
from hippo.scoring.tables import markdown_table, with_interval

import numpy as np


def sections(published):
    """{name: function that returns Markdown}."""
    return {
        "cohort": lambda: cohort(published("cohort.json")),
        "web": lambda: web(published("web.json")),
        "fine_tuning": lambda: fine_tuning(published("fine_tuning.json")),
    }


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
        [
            f"from choosing a 1 mm head to its table, mean of {page['n']}",
            _mean(page["table_seconds"]),
        ],
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

"""The page for checking a study: one HTML file with all of its pictures, worst quality first."""

import base64
import hashlib
import re
from html import escape
from pathlib import Path

from hippo.heads.flags import AMBER, FLAGS, GREEN, RED, flags_in, verdict
from hippo.study.change import rescans

import numpy as np

_HEAD = ("looked at", "scan", "quality", "left, mm³", "right, mm³", "asymmetry, %", "eTIV, ml", "flags", "pictures")
_OTHERS = ("seconds", "chosen")  # columns that may change while the result stays
_BANDS, _FEW_PEOPLE = 4, 20  # width of the lines of change in bands of rescans; more people are folded away
_NUMBERS = ("quality", "left, mm³", "right, mm³", "asymmetry, %", "eTIV, ml")


def page(title, scans, figures, facts, left_out=None, changes=()):
    """Returns the HTML of the page.

    scans: {name: (its rows of the table with statistics, picture as WebP bytes or None)}; figures: {volumes, change or
    profiles: list of Figure} or None; facts: {name: text} about the run; left_out: {file: reason} for skipped files;
    changes: rows of change.tsv.
    """
    figures = figures or {}
    ordered = sorted(scans.items(), key=lambda item: (_worst(item[1][0]), item[0]))
    raised = {flag.name for rows, _ in scans.values() for row in rows for flag in flags_in(row["flags"])}
    raised |= {flag.name for row in changes for flag in flags_in(row["flags"])}
    colours = [colour(rows) for rows, _ in scans.values()]
    failures = sum(any("failed: " in row["flags"] for row in rows) for rows, _ in scans.values())
    summary = f"{len(scans)} scans: {colours.count('green')} without doubts, {colours.count('amber')} to look at, "
    summary += f"{colours.count('red')} doubtful or failed ({failures} failed, in part or whole). Worst quality first."
    left = "; ".join(f"{escape(name)} ({escape(why)})" for name, why in sorted((left_out or {}).items()))
    parts = {
        "title": escape(title),
        "summary": summary,
        "left_out": f"<p>Left out: {left}</p>" if left else "",
        "volumes": "".join(map(_figure, figures.get("volumes", []))),
        "change": "".join(map(_figure, figures.get("change", []))) + _change_table(changes) if changes else "",
        "profiles": "".join(map(_figure, figures.get("profiles", []))),
        "head": "".join(_heading(name) for name in _HEAD),
        "rows": "\n".join(_row(name, rows, picture) for name, (rows, picture) in ordered),
        "flags": "".join(
            f"<dt>{flag}</dt><dd>{escape(flag.explanation)}</dd>" for name, flag in FLAGS.items() if name in raised
        )
        or "none",
        "facts": "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in facts.items()),
    }
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], template)


def _figure(figure):
    """Returns the HTML of a Figure with the key of its numbers."""
    heading = f"<h2>{escape(figure.title)}</h2>" if figure.title else ""
    key = "".join(
        f"<li value={number}>{escape(name.rpartition('/')[2])}</li>" for number, name in sorted(figure.key.items())
    )
    image = f'<img class="plot" alt="{escape(figure.alt)}" src="{_data(figure.png, "png")}">'
    return heading + image + (f'<ol class="key">{key}</ol>' if key else "")


def _change_table(changes):
    """Returns the HTML of the change between visits: a line for each person, with the grey band of rescans."""
    band, people = rescans()["band_percent"]["total"], {}
    for row in changes:
        people.setdefault(row["participant_id"], []).append(row)
    lines = "".join(_change_row(person, rows, band) for person, rows in people.items())
    widest = _BANDS * band
    head = "<th>person</th><th>visits</th><th>years</th><th>left, %</th><th>right, %</th>"
    head += f"<th>-{widest:.0f} to {widest:.0f} %, more at the edge</th><th>flags</th>"
    text = "Whole hippocampus: the last visit, or the fit, compared with the first. Blue: left; orange: right; grey, "
    text += (
        f"not bold: within {band:.1f} % ({rescans()['band_of']}). change.tsv has the parts and the change in a year."
    )
    is_open = " open" * (len(people) <= _FEW_PEOPLE)
    return f'<details{is_open}><summary>{escape(text)}</summary><table class="change"><tr>{head}</tr>{lines}</table></details>'


def _change_row(person, rows, band):
    """Returns the table row of a person. rows: of change.tsv; band: in %."""
    last = {row["side"]: row for row in rows if row.get("total_change_percent")}  # the fit, or else the last pair
    first = next(iter(last.values()), rows[0])
    percent = {side: row["total_change_percent"] for side, row in last.items()}
    places = {side: np.clip(100 * float(text) / (_BANDS * band), -100, 100) for side, text in percent.items()}
    dots = "".join(f'<circle cx="{place:.1f}" cy="0" r="4" class="{side}"/>' for side, place in places.items())
    line = f'<rect x="{-100 / _BANDS:.1f}" y="-8" width="{200 / _BANDS:.1f}" height="16"/><path d="M0-8V8"/>{dots}'
    cells = [escape(person), f"{escape(first.get('session_from', ''))} to {escape(first['session_to'])}"]
    cells += [first.get("years") or "-"]
    for text in (percent.get(side) for side in ("left", "right")):
        cells.append(f"<b>{text}</b>" if text and abs(float(text)) > band else text or "-")
    flags = dict.fromkeys(flag for row in rows for flag in row["flags"].split(";") if flag)  # failures come last
    cells += [f'<svg viewBox="-105 -9 210 18">{line}</svg>', _words({"flags": ";".join(flags)}, 1)]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _worst(rows):
    """Returns the lowest quality of a scan. A side without a result counts as worse than any."""
    return min(float(row["quality"] or -1) for row in rows)


def colour(rows):
    """Returns green, amber or red: the worst verdict of the sides of a scan."""
    colours = {verdict(flags_in(row["flags"]), bool(row["total_mm3"]))[0] for row in rows}
    return next(found for found in (RED, AMBER, GREEN) if found in colours)


def _data(content, kind):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _heading(name):
    kind = "number" if name in _NUMBERS else "text"
    order = ' aria-sort="ascending"' if name == "quality" else ""
    return f'<th data-kind="{kind}"{order}><button>{name}</button></th>'


def _row(name, rows, picture):
    """Returns the HTML table row of a scan."""
    of = {row["side"]: row for row in rows}
    totals = {side: of.get(side, {}).get("total_mm3", "") for side in ("left", "right")}
    first, name = rows[0], escape(name)
    number = {
        "quality": (_worst(rows), " / ".join(row["quality"] or "failed" for row in rows)),
        **{f"{side}, mm³": (v, f"{float(v):,.0f}" if v else "-") for side, v in totals.items()},
        "asymmetry, %": _scaled(first["asymmetry"], 100, "+.1f"),
        "eTIV, ml": _scaled(first["etiv_mm3"], 1e-3, ",.0f"),
    }
    cells = [f'<td><input type="checkbox" aria-label="{name} looked at"></td>']
    folder, _, stem = name.rpartition("/")
    folder = f"<small>{folder}</small>" if folder else ""
    cells += [f'<td class="name" title="{escape(first["scan"])}"><b>{stem}</b>{folder}</td>']
    cells += [f'<td class="number" data-value="{value}">{text}</td>' for value, text in number.values()]
    cells += [f"<td>{'<br>'.join(filter(None, (_words(row, len(rows)) for row in rows)))}</td>"]
    sides = ("left", "right")[: max(1, len(rows))]
    thumbs = "".join(
        f'<button class="thumb {side}" aria-label="enlarge {name}"><img alt=""></button>' for side in sides
    )
    cells += [f"<td>{thumbs if picture else ''}</td>"]
    data = f' data-picture="{_data(picture, "webp")}"' if picture else ""
    data += f' data-result="{_digest(rows)}"'
    return f'<tr class="{colour(rows)}" data-scan="{name}"{data}>{"".join(cells)}</tr>'


def _digest(rows):
    """Returns a digest that identifies a result in the list of checked results. It changes when the result changes."""
    values = [
        [(name, row[name]) for name in sorted(row) if name not in _OTHERS and "adjusted" not in name] for row in rows
    ]
    return hashlib.sha256(repr(values).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _scaled(text, factor, form):
    """Returns (value to sort by, text to show) for a table cell."""
    return (text, format(float(text) * factor, form)) if text else ("", "-")


def _words(row, of):
    """Returns the HTML of the flags of a side, each with its meaning as a tooltip, and of the reason if there is no
    result."""
    words = [f'<abbr title="{escape(flag.explanation)}">{flag}</abbr>' for flag in flags_in(row["flags"])]
    _, _, reason = row["flags"].partition("failed: ")
    words += [f"failed: {escape(reason)}"] if reason else []
    return (f"{row['side']}: " if of > 1 else "") + ", ".join(words) if words else ""

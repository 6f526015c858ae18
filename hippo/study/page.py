"""The page for checking a study: one HTML file with all of its pictures, worst quality first."""

import base64
import hashlib
import re
from html import escape
from pathlib import Path

from hippo.heads.flags import AMBER, FLAGS, GREEN, RED, flags_in, verdict

_HEAD = ("looked at", "scan", "quality", "left, mm³", "right, mm³", "asymmetry, %", "eTIV, ml", "flags", "pictures")
_NUMBERS = ("quality", "left, mm³", "right, mm³", "asymmetry, %", "eTIV, ml")


def page(title, scans, plot, facts, left_out=None):
    """Returns the HTML of the page.

    scans: {name: (its rows of the table with statistics, picture as WebP bytes or None)}; plot: PNG bytes or None;
    facts: {name: text} about the run; left_out: {file: reason} for skipped files.
    """
    ordered = sorted(scans.items(), key=lambda item: (_worst(item[1][0]), item[0]))
    raised = {flag.name for rows, _ in scans.values() for row in rows for flag in flags_in(row["flags"])}
    colours = [colour(rows) for rows, _ in scans.values()]
    failures = sum(any("failed: " in row["flags"] for row in rows) for rows, _ in scans.values())
    summary = f"{len(scans)} scans: {colours.count('green')} without doubts, {colours.count('amber')} to look at, "
    summary += f"{colours.count('red')} doubtful or failed ({failures} failed, in part or whole). Worst quality first."
    left = "; ".join(f"{escape(name)} ({escape(why)})" for name, why in sorted((left_out or {}).items()))
    image = f'<img class="plot" alt="volumes of the study" src="{_data(plot, "png")}">' if plot else ""
    parts = {
        "title": escape(title),
        "summary": summary,
        "left_out": f"<p>Left out: {left}</p>" if left else "",
        "plot": image,
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
    cells += [f'<td class="name" title="{escape(first["scan"])}">{name}</td>']
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
        [(name, row[name]) for name in sorted(row) if name != "seconds" and "adjusted" not in name] for row in rows
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

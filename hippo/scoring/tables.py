"""Formats tables and differences for the pages."""


def markdown_table(header, rows):
    """Returns a Markdown table; cells are converted with str."""
    head, *body = ("| " + " | ".join(map(str, row)) + " |" for row in [header, *rows])
    return "\n".join([head, "|---" * len(header) + "|", *body])


def with_interval(part, digits=4):
    """Formats a difference and its interval, as in +0.0015 (-0.0002 to +0.0031). part: from statistics.bootstrap."""
    mean, low, high = (f"{value:+.{digits}f}" for value in (part["mean"], *part["interval"]))
    return f"{mean} ({low} to {high})"

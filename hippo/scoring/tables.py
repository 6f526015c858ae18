"""Tables in Markdown."""


def markdown_table(header, rows):
    """A Markdown table; cells are written with str."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, ["---"] * len(header), *rows])

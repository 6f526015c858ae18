"""Mistakes of the user. The ground of the package: it imports nothing of ours."""

import sys


class UserError(Exception):
    """A mistake that the user can mend, shown as one line: which file, what was expected, what to type next."""


def require(condition, message):
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


def fail(error):
    """Prints an error as one line on stderr. Returns the exit code, 2."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2

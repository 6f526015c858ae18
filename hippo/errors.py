"""The ground: what a mistake of the user is, and how it is shown. Imports nothing of this project."""

import sys


class UserError(Exception):
    """A mistake that the user can mend. Shown as one line: which file, what was expected, what to do next."""


def fail(error):
    """Prints an error as one line on stderr and returns the exit code 2."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


def require(condition, message):
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)

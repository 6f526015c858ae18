"""User errors. This is the lowest module of the package: it imports none of the others."""

import sys


class UserError(Exception):
    """An error that the user can fix, shown as one line: which file, what was expected, what to type next."""


def require(condition, message):
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


def fail(error):
    """Prints an error as one line on stderr. Returns the exit code, 2."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2

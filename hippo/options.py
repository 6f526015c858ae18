"""What every script shares: constants with command-line overrides, seeds, device and precision, files that are
written whole.

A script's settings are the UPPER_CASE literals at its top, each with its meaning in a comment behind it:

    EPOCHS = 20  # passes over the training cases

`configure(globals())` turns them into `cfg.epochs` and so on, with `--epochs=5` on the command line overriding EPOCHS.
"""

import argparse
import ast
import difflib
import math
import os
import sys
import tokenize
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist

from hippo.errors import UserError, fail
from hippo.processes import world_size


def run_script(main):
    """Calls main(); a UserError or an operating-system error ends with one line on stderr and exit code 2."""
    try:
        main()
        if world_size() > 1:
            dist.destroy_process_group()
    except (UserError, OSError) as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # once on each machine
            fail(error)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"\ninterrupted{': ' if stop.args else ''}{' '.join(map(str, stop.args))}", file=sys.stderr)
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; --help lists the options")


def constants(module):
    """The settings of a script, from its globals(): {NAME: (value, comment)}, in the order of the file."""
    path = Path(module["__file__"])
    with tokenize.open(path) as file:
        source = file.read()
    comments = {
        t.start[0]: t.string.lstrip("# ")
        for t in tokenize.generate_tokens(iter(source.splitlines(True)).__next__)
        if t.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if (
                name.isupper()
                and not name.startswith("_")
                and isinstance(module[name], (bool, int, float, str, list, tuple))
            ):
                found[name] = (module[name], comments.get(node.end_lineno, ""))
    return found


def _converter(default):
    """A function from the text of an option to a value of the default's type."""

    def convert(text):
        kind = type(default)
        if kind is str:
            return text
        try:
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            if kind in (list, tuple):
                value = ast.literal_eval(text)
                value = list(value) if isinstance(value, (list, tuple)) else [value]
                if default and not all(
                    isinstance(v, type(default[0])) or (type(v) is int and type(default[0]) is float) for v in value
                ):
                    raise ValueError
                return kind(value)
            value = kind(text)
            if not math.isfinite(value):
                raise ValueError
            return value
        except (KeyError, ValueError, SyntaxError, OverflowError):
            expected = {bool: "True or False", int: "a whole number", float: "a number"}.get(
                kind, f"a list such as {default}"
            )
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None

    return convert


def configure(module, argv=None, inputs=None, **overrides):
    """The configuration of a script, from its globals(): a SimpleNamespace with each constant in lower case.

    argv:      the command line (default: sys.argv); [] for none, as when another script calls `run`.
    inputs:    help text of positional arguments, which then stand in cfg.inputs.
    overrides: constants in lower case that take another value, as `epochs=5`.
    Raises UserError for an unknown option (naming the nearest one) and for a value of the wrong type.
    """
    known = constants(module)
    parser = _Parser(
        prog=Path(module["__file__"]).name,
        description=module["__doc__"],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if inputs:
        parser.add_argument("inputs", nargs="*", help=inputs)
    for name, (value, comment) in known.items():
        parser.add_argument(
            f"--{name.lower()}",
            default=value,
            type=_converter(value),
            metavar=type(value).__name__.upper(),
            help=f"{comment} [{value}]".replace("%", "%%"),
        )
    # inputs may stand between and after options
    parsed, unknown = (parser.parse_known_intermixed_args if inputs else parser.parse_known_args)(argv)
    unknown += [f"--{name}" for name in overrides if name.upper() not in known]
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-").lower().replace("-", "_")
        near = difflib.get_close_matches(name, [k.lower() for k in known], n=1, cutoff=0.4)
        hint = f"did you mean --{near[0]}? " if near else ""
        raise UserError(f"{parser.prog} has no option {unknown[0].split('=')[0]}; {hint}--help lists them all")
    return SimpleNamespace(**{**vars(parsed), **overrides})

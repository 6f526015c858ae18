"""Turns the constants of a script into command-line options.

The settings of a script are the UPPER_CASE literals at its top. The comment behind each one is its help text:

    EPOCHS = 20  # passes over the training cases

`configure(globals())` turns them into `cfg.epochs` and so on. On the command line, `--epochs=5` overrides EPOCHS. A
script with a constant RECIPE has a dict RECIPES, {name: {constant in lower case: value}}: other defaults for constants
that the command line does not set.
"""

import argparse
import ast
import difflib
import gc
import math
import os
import sys
import tokenize
from pathlib import Path
from types import SimpleNamespace

from hippo.errors import UserError, fail
from hippo.processes import leave_processes, under_torchrun


def run_script(main):
    """Calls main(). A UserError or an operating-system error ends the script with one line on stderr and exit code 2.
    Characters that the terminal's encoding lacks are printed as escape codes."""
    gc.freeze()  # what was imported stays: without another look at it the process ends sooner
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        leave_processes()
    except (UserError, OSError) as error:
        if not under_torchrun() or os.environ["LOCAL_RANK"] == "0":  # once on each machine
            fail(error)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"\ninterrupted{': ' if stop.args else ''}{' '.join(map(str, stop.args))}", file=sys.stderr)
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; --help lists the options")


def constants(module):
    """Returns the settings of a script, from its globals(): {NAME: (value, comment)}, in the order of the file."""
    with tokenize.open(Path(module["__file__"])) as file:
        source = file.read()
    tokens = tokenize.generate_tokens(iter(source.splitlines(True)).__next__)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            kinds = (bool, int, float, str, list, tuple)
            if name.isupper() and not name.startswith("_") and isinstance(module[name], kinds):
                found[name] = (module[name], comments.get(node.end_lineno, ""))
    return found


def _converter(default):
    """Returns a function that converts the text of an option to the type of the default."""

    def convert(text):
        kind = type(default)
        if kind is str:
            return text
        try:
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            if kind in (list, tuple):
                return _list(text, default)
            value = kind(text)
            if not math.isfinite(value):
                raise ValueError
            return value
        except (KeyError, TypeError, ValueError, SyntaxError, OverflowError):
            expected = {bool: "True or False", int: "a whole number", float: "a number"}
            words = expected.get(kind, f"a list such as {default}")
            raise argparse.ArgumentTypeError(f"expected {words}, got {text!r}") from None

    return convert


def _list(text, default):
    """Parses a list or tuple whose values have the type of the default's first value. A single value becomes a list of
    one, and a text needs no quotes then."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text.startswith(("[", "(")):
            raise
        value = text
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    for v in value:
        kind = type(default[0]) if default else type(v)
        if not (type(v) is kind or (type(v) is int and kind is float)) or (kind is float and not math.isfinite(v)):
            raise ValueError
    return type(default)(value)


def _spell_out(arguments, known):
    """Returns the command line with underscores instead of hyphens in names, and with "=True" after each bare boolean."""
    result = []
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = f"--{name[2:].replace('-', '_')}{equals}{value}"
            following = arguments[i + 1].lower() if i + 1 < len(arguments) else ""
            is_boolean = isinstance(known.get(argument[2:].upper(), ("",))[0], bool)
            if is_boolean and following not in ("true", "false"):
                argument += "=True"
        result.append(argument)
    return result


def configure(module, argv=None, inputs=None, **overrides):
    """Returns the configuration of a script, from its globals(): a SimpleNamespace with each constant in lower case.

    argv:      the command line (default: sys.argv); [] for none, as when another script calls `run`.
    inputs:    help text of positional arguments, which are stored in cfg.inputs.
    overrides: other values for constants, in lower case, such as `epochs=5`.
    Raises UserError for an unknown option, naming the nearest one, and for a value of the wrong type.
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
    parse = parser.parse_known_intermixed_args if inputs else parser.parse_known_args  # inputs may follow options
    argv = _spell_out(sys.argv[1:] if argv is None else argv, known)
    parsed, unknown = parse(argv)
    if "RECIPE" in known:
        name, recipes = overrides.get("recipe", parsed.recipe), module["RECIPES"]
        if name not in recipes:
            raise UserError(f"--recipe={name}: expected one of {', '.join(recipes)}")
        parser.set_defaults(**recipes[name])
        parsed, unknown = parse(argv)
    unknown += [f"--{name}" for name in overrides if name.upper() not in known]
    if unknown:
        name = unknown[0].split("=")[0]
        near = difflib.get_close_matches(name.lstrip("-").lower(), [k.lower() for k in known], n=1, cutoff=0.6)
        hint = f"did you mean --{near[0]}? " if near else ""
        raise UserError(f"{parser.prog} has no option {name}; {hint}--help lists them all")
    return SimpleNamespace(**{**vars(parsed), **overrides})

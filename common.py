"""What every script shares: constants with command-line overrides, seeds, device and precision, files that are
written whole.

A script's settings are the UPPER_CASE literals at its top, each with its meaning in a comment behind it:

    EPOCHS = 20  # passes over the training cases

`configure(globals())` turns them into `cfg.epochs` and so on, with `--epochs=5` on the command line overriding EPOCHS.
"""

import argparse
import ast
import contextlib
import ctypes
import difflib
import json
import math
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import tokenize
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist


class UserError(Exception):
    """A mistake that the user can mend. Shown as one line: which file, what was expected, what to do next."""


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


def fail(error):
    """Prints an error as one line on stderr and returns the exit code 2."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


# ---- constants and options


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


def require(condition, message):
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


# ---- several processes, as torchrun starts them: torchrun --nproc_per_node=2 train_3d.py


def join_processes():
    """Joins the processes that torchrun started, and silences all but the first; without torchrun does nothing."""
    if "RANK" in os.environ and not dist.is_initialized():
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        if rank():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (stays open)


def refuse_several_processes(advice):
    """Raises UserError where torchrun started this process; `advice` says what to do instead."""
    require("RANK" not in os.environ, f"this script runs in one process: {advice} instead of torchrun")


def rank():
    """The number of this process; 0 is the one that writes files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size():
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(value):
    """The value of every process, in their order."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def on_first(function, *args):
    """Calls function in the first process only, and gives its result, or its error, to all."""
    if world_size() == 1:
        return function(*args)
    result = [None, None]
    if rank() == 0:
        try:
            result[0] = function(*args)
        except (UserError, OSError) as error:
            result[1] = str(error)
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise UserError(result[1])
    return result[0]


class Interrupt:
    """Inside `with Interrupt() as interrupt`, a first Ctrl-C only sets interrupt.asked; a second one interrupts at once."""

    def __enter__(self):
        self.asked, self.before = False, None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, *_):
        if self.asked:
            raise KeyboardInterrupt("nothing was saved since the last epoch")
        self.asked = True
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr)

    def __exit__(self, *_):
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


# ---- seeds, device, precision


def seed_everything(seed):
    """Seeds Python, NumPy and torch, and asks cuDNN for deterministic kernels: on a CPU, the same seed gives the same history."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def keep_freed_memory():
    """Linux with glibc: keep freed blocks for the next step instead of returning them to the system, where each new
    large tensor pays for fresh pages. Makes a CPU training step 10-20 % faster; elsewhere does nothing.
    """
    if platform.system() == "Linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            _ = libc.mallopt(-3, 2**30) or libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, bytes; older glibc takes less
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes


def cpu_has_bf16():
    """Whether this processor multiplies bf16 matrices itself; where it merely emulates them, float32 is faster."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def pick_device(name="auto", amp=True):
    """(torch.device, autocast dtype or None), printed in one line. "auto": CUDA where there is one, CPU otherwise.
    Mixed precision: fp16 on CUDA, bf16 on a CPU that has it, else none (float32). Raises UserError for a device that
    is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        require(device.type in ("cpu", "cuda"), f"--device={name}: expected auto, cpu or cuda")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"--device={name} is not available here ({str(error).splitlines()[0]}); use auto, cpu or cuda"
        ) from None
    dtype = None
    if amp and device.type == "cuda":
        dtype = torch.float16
    elif amp and device.type == "cpu" and cpu_has_bf16():
        dtype = torch.bfloat16
    if device.type == "cpu":
        keep_freed_memory()
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"device: {device} ({what}), precision: {str(dtype or torch.float32).removeprefix('torch.')}", flush=True)
    return device, dtype


def autocast(device, dtype):
    """The autocast context for what pick_device returned."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def describe_environment():
    """Versions and machine, for config.json: plain strings and numbers."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            timeout=10,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.system(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "git_commit": commit or "unknown",
    }


# ---- files


@contextlib.contextmanager
def atomic(path, durable=True):
    """Yields a temporary path in the same folder, with the same ending; when the block ends well it takes the place
    of `path`, and otherwise nothing is left. A reader sees the old file or the whole new one.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:  # safe against a power cut too; not worth its time for thousands of small files
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error}); is there room, and permission?") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_json(path, content):
    """Writes content as JSON, whole or not at all; NaN and infinity become null."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=1, allow_nan=False), encoding="utf-8")


def _finite(value):
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_json(path, made_by):
    """Reads a JSON file; `made_by` is the command to name when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it with: {made_by}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); make it again with: {made_by}") from None


def save_checkpoint(path, content):
    """Writes a dict of tensors and plain Python values, whole or not at all."""
    with atomic(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(str(error).splitlines()[0]) from None


def load_checkpoint(path, made_by="python train_3d.py or python train2d.py"):
    """Reads a checkpoint of this project onto the CPU, tensors and plain values only (nothing in the file is ever run)."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; make it with: {made_by}")
    try:
        with zipfile.ZipFile(
            path
        ) as archive:  # torch writes without compression: more promised than there is is a trap
            if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
                raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a broken or hostile file
        raise UserError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); make it with: {made_by}"
        ) from None
    if not isinstance(content, dict) or not {"model", "model_state_dict"} <= content.keys():
        raise UserError(
            f"{path}: a checkpoint, but not of this project (no model and model_state_dict); make it with: {made_by}"
        )
    return content


def check_folder(path):
    """The path of a folder for results. Raises UserError for a file and for the working directory or one above it."""
    path = Path(path)
    require(not path.exists() or path.is_dir(), f"{path} is a file; choose another --out_dir")
    require(
        path.resolve() not in [Path.cwd(), *Path.cwd().parents],
        f"{path}: results need a folder of their own; choose another --out_dir",
    )
    return path


def keep_earlier(path):
    """Renames a file that exists to <stem>.previous-N<suffix>, so that it is not overwritten."""
    path, n = Path(path), 1
    if path.exists():
        while (kept := path.with_name(f"{path.stem}.previous-{n}{path.suffix}")).exists():
            n += 1
        path.rename(kept)
        print(f"{path} was there: it is now {kept}", flush=True)


def fresh_folder(path):
    """Makes an empty folder; one that holds something is first renamed to <name>.previous-N, so that nothing is
    overwritten.
    """
    path = check_folder(path)
    if path.is_dir() and any(path.iterdir()):
        n = 1
        while (kept := path.with_name(f"{path.name}.previous-{n}")).exists():
            n += 1
        path.rename(kept)
        print(f"{path} held earlier results: they are now in {kept}", flush=True)
    path.mkdir(parents=True, exist_ok=True)
    return path

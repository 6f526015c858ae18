"""Seeds, device, precision and memory."""

import contextlib
import ctypes
import functools
import os
import platform
import random
import re
import subprocess
import time

from hippo import __version__
from hippo.errors import UserError, require
from hippo.files import ROOT
from hippo.processes import gather, world_size

import numpy as np
import torch


def seed_everything(seed):
    """Seeds Python, NumPy and torch, and asks cuDNN for deterministic kernels.

    On a CPU the same seed then gives the same history.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def random_state(device):
    """Returns the states of torch's random number generators: {"cpu": tensor} and, on CUDA, "cuda" too."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state, device):
    """Sets the generators to what random_state returned. A generator without a saved state is not changed."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def keep_freed_memory():
    """Keeps freed blocks for the next step instead of returning them to the system, on Linux with glibc.

    Without this, each large tensor takes fresh pages from the system, which slows a CPU training step. Does nothing on
    other systems.
    """
    if platform.system() == "Linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            _ = libc.mallopt(-3, 2**30) or libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, bytes; older glibc takes less
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes


@functools.cache
def bf16_is_faster():
    """Whether this processor multiplies bf16 matrices in hardware, and faster than those of float32.

    The second is measured, in 30 milliseconds, since the instructions do not tell: with AMX bf16 is several times as
    fast, with those of AVX-512 alone twice as fast on some processors and slower on others. Where torch is
    limited to AVX2 (ATEN_CPU_CAPABILITY), bf16 is emulated, and nothing is measured.
    """
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    limited = torch.backends.cpu.get_cpu_capability() == "AVX2"
    if limited or not any(getattr(torch.cpu, name, bool)() for name in instructions):
        return False
    matrices = {dtype: torch.ones(384, 384, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = {dtype: [] for dtype in matrices}
    for _ in range(6):  # in turn, so that other work on the machine slows both; the first ones warm up
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype].append(time.perf_counter() - start)
    return min(seconds[torch.bfloat16]) < 0.9 * min(seconds[torch.float32])


def pick_device(name="auto", amp=True):
    """Returns (torch.device, autocast dtype or None) for a name: auto (CUDA if available, else CPU), cpu, cuda,
    cuda:1, or mps (Apple's GPUs; auto does not choose them, since nobody has measured them yet).

    Mixed precision (amp): bf16 on a GPU that has it and on a CPU where it is faster, fp16 on an older CUDA card, else
    none, that is float32.
    Raises UserError for an unknown name and for a device that is not available.
    """
    known = re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name)
    require(known, f"--device={name}: expected auto, cpu, cuda, cuda:1 or mps")
    several = f"--device={name} is one device, and torchrun gives each process its own; use --device=cuda"
    require(world_size() == 1 or ":" not in name, several)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        if name == "cuda":  # with its number, which torch.cuda.set_device needs
            device = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device={name} is not available here ({str(error).splitlines()[0]}); use --device=cpu"
        ) from None
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return device, (torch.bfloat16 if bf16 else torch.float16) if amp else None
    return device, torch.bfloat16 if amp and device.type == "cpu" and bf16_is_faster() else None


def set_up_device(name="auto", amp=True):
    """Returns the result of pick_device. Makes the CUDA device current, or configures the CPU's memory allocator, and
    prints a line.

    With several processes, an error in any of them is raised in all.
    """
    try:
        (device, dtype), problem = pick_device(name, amp), ""
    except UserError as error:
        problem = str(error)
    for text in gather(problem):
        require(not text, text)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        text = torch.cuda.get_device_name(device)
    else:
        keep_freed_memory()
        text = f"{torch.get_num_threads()} threads" if device.type == "cpu" else "Apple's GPU"
    print(f"device: {device} ({text}), precision: {precision(dtype)}", flush=True)
    return device, dtype


def precision(dtype):
    """Returns the name of an autocast dtype, such as bfloat16; float32 for None."""
    return str(dtype or torch.float32).removeprefix("torch.")


def autocast(device, dtype):
    """Returns the autocast context for the result of pick_device."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def describe_environment():
    """Returns versions and machine, for config.json: plain strings and numbers."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        commit = subprocess.run(command, timeout=10, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.system(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "git_commit": commit or "unknown",
    }

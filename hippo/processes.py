"""Several processes started by torchrun (torchrun --nproc_per_node=2 train_3d.py), and Ctrl-C."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait

from hippo.errors import UserError, require

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def under_torchrun():
    """Whether torchrun, or a similar launcher, started this process. All of its variables are checked, because one may
    be inherited."""
    return all(os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def join_processes():
    """Joins the processes that torchrun started. Does nothing without torchrun."""
    if under_torchrun() and not dist.is_initialized():
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")


def silence_all_but_the_first():
    """Discards the output of all processes but the first, so that each line appears once."""
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (stays open)


def leave_processes():
    """Ends the process group that join_processes started."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def refuse_several_processes(advice):
    """Raises UserError if torchrun started this process; `advice` says what to do instead."""
    require(not os.environ.get("RANK"), f"this script runs in one process: {advice} instead of torchrun")


def rank():
    """Returns the number of this process. Process 0 writes the files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size():
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(value):
    """Returns the values of all processes, ordered by rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def any_process(flag):
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags)
    return bool(flags)


def average_gradients(model, device):
    """Returns the model wrapped so that its gradients are averaged over all processes; of a single process, the model
    itself."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def on_first(function, *args):
    """Calls a function in the first process only. Returns its result, or raises its error, in all processes."""
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
    """Context manager: a first Ctrl-C sets `asked`, a second one interrupts at once."""

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


def end_with_parent():
    """Ends this process, by a thread of its own, when its parent process ends, even if the parent is killed."""

    def wait_for_it():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=wait_for_it, daemon=True).start()


def ignore_interrupts(*_):
    """Ignores Ctrl-C in a worker process; the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

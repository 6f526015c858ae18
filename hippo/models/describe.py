"""Tables of models: parameters, multiply-adds, latency."""

import itertools
import time

from hippo.device import autocast, set_up_device
from hippo.models.blocks import count_parameters

import torch
from torch.utils.flop_counter import FlopCounterMode


def describe_models(models, shape):
    """Returns rows [name, parameters, multiply-adds, CPU milliseconds] of models {name: class}, each without and with
    the INR head, for one input of `shape` (B, C, *S). Milliseconds are the minimum of ten runs."""
    device, dtype = set_up_device("cpu")
    rows = []
    for name, use_inr in itertools.product(models, (False, True)):
        model, x, seconds = models[name](use_inr=use_inr), torch.zeros(shape), []
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model.eval()(x)
        with torch.inference_mode(), autocast(device, dtype):
            for _ in range(10):
                start = time.perf_counter()
                model(x)
                seconds.append(time.perf_counter() - start)
        name += " + INR" * use_inr
        rows.append([name, count_parameters(model), counter.get_total_flops() // 2, round(1000 * min(seconds), 1)])
    return rows


def print_models(models, shape):
    """Prints describe_models as a table."""
    rows, size = describe_models(models, shape), " x ".join(map(str, shape[2:]))
    print(f"{'model':<45} {'parameters':>11} {'multiply-adds':>15} {'ms on the CPU':>14}   at {size}")
    for name, parameters, multiply_adds, milliseconds in rows:
        print(f"{name:<45} {parameters:>11,} {multiply_adds / 1e9:>13.2f} G {milliseconds:>14.1f}")

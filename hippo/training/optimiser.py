"""Optimisers (Muon for the kernels of the U-Net's convolutions, AdamW for everything else) and their learning rate
schedule."""

import math

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al.: steep at zero, and near 1 for all singular values


def schedule(progress, warmup, cooldown):
    """Returns the fraction of the peak learning rate at `progress`, in [0, 1), of a run.

    It rises linearly from 0.01 over the first `warmup`, stays at 1, and falls as half a cosine to zero over the last
    `cooldown`, each a fraction of the run. If the two overlap, the warmup takes precedence.
    """
    if progress < warmup:
        return progress / warmup * 0.99 + 0.01
    start = max(warmup, 1 - cooldown)
    return 1.0 if progress < start else 0.5 * (1 + math.cos(math.pi * (progress - start) / (1 - start)))


def make_optimisers(model, cfg):
    """Returns the optimisers of a model: [AdamW] or, with cfg.muon_rate, [AdamW, Muon]. Each of their groups keeps its
    largest learning rate as "peak", of which the loop sets a share before each step.

    Muon trains all kernels and matrices of model.unet with more than one channel in and out: all but the first. AdamW
    trains that one, norms, biases and heads; the INR head with the learning rate cfg.inr_rate, because its sines amplify
    each step by omega_0. cfg: learning_rate, weight_decay, muon_rate, and for an INR head inr_rate.
    """
    kernels = [p for p in model.unet.parameters() if p.requires_grad and p.ndim in (2, 4, 5) and min(p.shape[:2]) > 1]
    kernels = kernels if cfg.muon_rate else []
    head = list(model.inr.parameters()) if model.inr is not None else []
    taken = set(map(id, kernels + head))
    groups = [{"params": [p for p in model.parameters() if p.requires_grad and id(p) not in taken]}]
    groups += [{"params": head, "lr": cfg.inr_rate}] if head else []
    fused = next(model.parameters()).is_cuda or None  # on CUDA one kernel, which can skip a step by itself
    optimisers = [torch.optim.AdamW(groups, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=fused)]
    if kernels:
        optimisers.append(Muon(kernels, lr=cfg.muon_rate, weight_decay=cfg.weight_decay))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return optimisers


def load_optimiser(optimiser, state):
    """Restores an optimiser from its state_dict, which may have been saved on another device: whether AdamW is fused
    stays as make_optimisers decided here."""
    for own, saved in zip(optimiser.param_groups, state["param_groups"]):
        if "fused" in own:
            saved["fused"] = own["fused"]
    optimiser.load_state_dict(state)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): orthogonalised Nesterov momentum.

    A kernel is viewed as a matrix with one row per channel of its first axis. The step moves equally far in every
    direction of that matrix. Weight decay is decoupled, as in AdamW. If there is an attribute found_inf, a tensor on the
    device, and it is 1, the step changes nothing, as in torch's fused optimisers.
    """

    _step_supports_amp_scaling = True  # torch.amp.GradScaler then sets found_inf, instead of waiting for its value

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        found_inf = getattr(self, "found_inf", None)
        share = 1.0 if found_inf is None else 1 - found_inf  # of the step
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                grad, mean = p.grad, state["mean"]
                if found_inf is not None:
                    grad = grad.nan_to_num(0.0, 0.0, 0.0)
                mean.lerp_(grad, share * (1 - momentum))
                direction = orthogonalise(grad.lerp(mean, momentum).flatten(1))  # (out, in * prod(k))
                p.mul_(1 - share * (rate * group["weight_decay"])).add_(direction.view(p.shape) * share, alpha=-rate)


def orthogonalise(matrix, steps=5):
    """Returns a matrix (n, m) with the same singular vectors and all singular values near 1, by Newton-Schulz
    iterations.

    The values reach 0.7 to 1.2; those below 1e-3 of the norm stay smaller. The iterations run on the Gram matrix X X^T
    (n, n), in float32.
    """
    n, m = matrix.shape
    if n > m:
        return orthogonalise(matrix.T, steps).T
    a, b, c = QUINTIC
    x = matrix.float() / (matrix.float().norm() + 1e-7)
    gram, total = x @ x.T, None  # (n, n)
    identity = torch.eye(n, device=x.device)
    for _ in range(steps):
        factor = a * identity + (b * identity + c * gram) @ gram  # the factor by which an iteration multiplies x
        gram = factor @ gram @ factor
        total = factor if total is None else factor @ total
    return total @ x

"""Muon, the split of the parameters between the optimisers, and the schedule."""

from types import SimpleNamespace

from hippo.training.optimiser import Muon, make_optimisers, orthogonalise, schedule
from model2d import MODELS as MODELS_2D
from unet_inr_3d import UNet3DWithINR

import numpy as np
import pytest
import torch


def settings(**values):
    return SimpleNamespace(**{"learning_rate": 3e-3, "inr_rate": 1e-4, "weight_decay": 0.0, "muon_rate": 0.02} | values)


@pytest.mark.parametrize("shape", [(16, 432), (432, 16), (64, 256), (3, 1000)])
def test_orthogonalise_keeps_the_singular_vectors_and_levels_the_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    u2, values2, v2 = (a.double() for a in (u, torch.ones_like(values), v))
    result = orthogonalise(matrix).double()
    inner = u2.T @ result @ v2.T  # diagonal where the singular vectors are kept
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-3)
    assert torch.allclose(result, u2 @ torch.diag(inner.diagonal()) @ v2, atol=1e-3)
    assert inner.diagonal().min() > 0.65 and inner.diagonal().max() < 1.25
    assert torch.allclose(orthogonalise(matrix * 1e6).double(), result, atol=1e-4)  # whatever the scale


def test_orthogonalise_is_the_iteration_on_the_matrix_itself():
    """Against the plain form, in float64, for a matrix whose singular values span six orders of magnitude."""
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    matrix = rotation @ (torch.logspace(0, -6, 32)[:, None] * torch.randn(32, 500, generator=generator))
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    assert torch.allclose(orthogonalise(matrix).double(), x, atol=1e-3)
    assert not orthogonalise(torch.zeros(4, 5)).any()


def test_muon_step_by_hand():
    start = torch.randn(4, 3, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    p = torch.nn.Parameter(start.clone())
    optimiser, mean = Muon([p], lr=0.1, weight_decay=0.5, momentum=0.9), torch.zeros_like(p)
    expected = start.clone()
    for seed in range(3):
        grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        p.grad = grad.clone()
        optimiser.step()
        mean = 0.9 * mean + 0.1 * grad
        direction = orthogonalise((0.1 * grad + 0.9 * mean).reshape(4, -1)).reshape(p.shape)
        expected = (1 - 0.1 * 0.5) * expected - 0.1 * direction
    assert torch.allclose(p.detach(), expected, atol=1e-5)


@pytest.mark.parametrize("make", [*MODELS_2D.values(), UNet3DWithINR])
def test_every_parameter_has_one_optimiser(make):
    model = make(use_inr=True)
    names = {id(p): name for name, p in model.named_parameters()}
    adamw, muon = make_optimisers(model, settings())
    parts = [[names[id(p)] for group in o.param_groups for p in group["params"]] for o in (adamw, muon)]
    assert sorted(parts[0] + parts[1]) == sorted(names.values())
    kernels = {n for n, p in model.named_parameters() if n.startswith("unet.") and p.ndim >= 4}
    assert set(parts[1]) == kernels - {"unet.down.0.0.weight"} and len(kernels) > 5
    (alone,) = make_optimisers(model, settings(muon_rate=0))
    assert sum(len(group["params"]) for group in alone.param_groups) == len(names)


def test_the_inr_head_moves_at_its_own_rate():
    rates = {}
    for use_inr in (True, False):
        model = UNet3DWithINR(use_inr=use_inr)
        rate_of = {
            id(p): group["peak"]
            for o in make_optimisers(model, settings())
            for group in o.param_groups
            for p in group["params"]
        }
        rates[use_inr] = {name: rate_of[id(p)] for name, p in model.named_parameters()}
    assert {rate for name, rate in rates[True].items() if name.startswith("inr.")} == {1e-4}
    assert {name: rate for name, rate in rates[True].items() if not name.startswith("inr.")} == rates[False]


def test_schedule():
    shares = [schedule(i / 1000, 0.1, 1.0) for i in range(1000)]  # warm-up, then half a cosine
    assert np.argmax(shares) == 100 and max(shares) == 1.0
    assert shares[0] == pytest.approx(0.01) and shares[-1] < 1e-5
    assert all(np.diff(shares[:100]) > 0) and all(np.diff(shares[101:]) < 0)
    assert schedule(0, 0, 1.0) == 1.0
    assert [schedule(p, 0.1, 0.0) for p in (0.1, 0.5, 0.999)] == [1.0] * 3  # no cooldown
    late = [schedule(i / 1000, 0.1, 0.25) for i in range(1000)]
    assert set(late[100:750]) == {1.0} and late[875] == pytest.approx(0.5, abs=1e-3) and all(np.diff(late[751:]) < 0)

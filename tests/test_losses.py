"""The loss, by hand and under deep supervision."""

from hippo.training.losses import dice_ce_loss

import numpy as np
import pytest
import torch
import torch.nn.functional as F


def test_loss_by_hand():
    # two voxels, two foreground classes; uniform probabilities of 1/3
    logits, target = torch.zeros(1, 3, 2), torch.tensor([[1, 2]])
    dice = (2 / 3) / (2 / 3 + 1)
    for gamma in (0, 2):
        expected = 0.5 * (1 - dice) + 0.5 * (2 / 3) ** gamma * np.log(3)
        assert dice_ce_loss(logits, target, focal_gamma=gamma).item() == pytest.approx(expected, abs=1e-5)
    perfect = 50.0 * F.one_hot(target, 3).movedim(-1, 1).float()
    assert dice_ce_loss(perfect, target).item() < 1e-4


def test_cross_entropy_is_torchs():
    logits, target = torch.randn(2, 3, 4, 6, 8), torch.randint(0, 3, (2, 4, 6, 8), dtype=torch.uint8)
    with_ce, with_focal = (dice_ce_loss(logits, target, focal_gamma=g) for g in (0, 1e-6))
    assert with_ce.item() == pytest.approx(with_focal.item(), abs=1e-4)
    dice = 2 * (with_ce - 0.5 * F.cross_entropy(logits, target.long()))
    assert 0 < dice < 1
    p, truth = logits.softmax(1).flatten(2), F.one_hot(target.long(), 3).movedim(-1, 1).float().flatten(2)
    expected = 1 - (2 * (p * truth).sum(2) / (p.sum(2) + truth.sum(2)))[:, 1:].mean()
    assert dice.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (4, 6, 8)])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_gradient_is_finite(size, gamma):
    target = torch.randint(0, 3, (2, *size), dtype=torch.uint8)
    for scale in (1, 1e4):
        logits = (scale * torch.randn(2, 3, *size)).requires_grad_()
        loss = dice_ce_loss([logits, logits[(..., *[slice(None, None, 2)] * len(size))]], target, gamma)
        loss.backward()
        assert loss.item() > 0 and torch.isfinite(logits.grad).all()


@pytest.mark.promise("half_a_voxel")
@pytest.mark.parametrize("factor", [2, 4])
def test_the_target_of_a_coarser_output_is_in_place(factor):
    """A coarse output is best where it says the share of each class in its voxels, not what one corner of them holds."""
    fine = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    fine[0, 1:5, 2:7, 3:8] = 1
    shares = F.avg_pool3d(F.one_hot(fine.long(), 3).movedim(-1, 1).float(), factor)
    exact = F.one_hot(fine.long(), 3).movedim(-1, 1) * 30.0

    def loss(coarse):
        return dice_ce_loss([exact, coarse], fine).item()

    best = loss((shares + 1e-6).log())
    for axis in (2, 3, 4):
        assert best < loss((shares.roll(1, axis) + 1e-6).log())
        assert best < loss((shares.roll(-1, axis) + 1e-6).log())
    # cross-entropy alone, of the coarse output: least at the shares themselves, where it is their entropy
    logits = (shares + 1e-6).log().requires_grad_()
    gradient = torch.autograd.grad(dice_ce_loss([exact, logits], fine, smooth=1e9), logits)[0]
    assert gradient.abs().max() < 1e-4


def test_outputs_are_weighted_as_in_nnunet():
    target = torch.randint(0, 3, (1, 4, 8), dtype=torch.uint8)
    outputs = [torch.randn(1, 3, 4, 8), torch.randn(1, 3, 4, 8), torch.randn(1, 3, 4, 8)]
    each = [dice_ce_loss(output, target).item() for output in outputs]
    expected = (each[0] + each[1] / 2 + each[2] / 4) / 1.75
    assert dice_ce_loss(outputs, target).item() == pytest.approx(expected, abs=1e-5)

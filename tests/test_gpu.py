import json

from hippo.training.engine import descend
from hippo.training.optimiser import Muon, load_optimiser
from tools import gpu

import pytest
import torch


@pytest.mark.slow
def test_the_trial_of_a_gpu_runs_on_a_cpu(script, tmp_path):
    options = ("--cases=5", "--epochs=1", "--min_steps=2", "--heads=1", "--num_workers=1", "--tests=[]")
    code, _, err = script(gpu, *options, f"--out={tmp_path / 'gpu.json'}")
    assert code == 0, err
    result = json.loads((tmp_path / "gpu.json").read_text())
    for name in ("train_3d", "train_2d_short"):
        assert result[name]["gpu"]["dice"] == result[name]["cpu"]["dice"]  # both are the CPU
        assert result[name]["gpu"]["skipped_steps"] == 0
    assert result["torchrun"]["exit_code"] == 0
    assert result["heads"]["dice_between_devices"] == [[1.0] * 4]
    assert min(min(result["heads"]["dice_with_truth_gpu_cpu"])) > 0.7


def test_muon_skips_a_step_by_itself():
    """As on a GPU, where nothing waits for the answer whether the gradient is finite."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3))
    before, optimiser = weight.detach().clone(), Muon([weight], lr=0.1, weight_decay=0.1)
    weight.grad = torch.full_like(weight, float("nan"))
    optimiser.found_inf = torch.tensor(1.0)
    optimiser.step()
    assert torch.equal(weight, before) and not optimiser.state[weight]["mean"].any()
    weight.grad = torch.randn(4, 3)
    optimiser.found_inf = torch.tensor(0.0)
    optimiser.step()
    told = weight.detach().clone()
    weight.data, optimiser.found_inf = before.clone(), None
    optimiser.state[weight]["mean"].zero_()
    optimiser.step()
    assert torch.allclose(weight, told, atol=1e-7) and not torch.equal(weight, before)


@pytest.mark.parametrize("before, now", [(True, None), (None, True)])
def test_a_run_goes_on_with_the_optimiser_of_another_device(before, now):
    """On CUDA AdamW is fused, and alone takes found_inf; on a CPU it is not."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    first, second = (torch.optim.AdamW([weight], lr=0.1, fused=fused) for fused in (before, now))
    first.step()
    load_optimiser(second, first.state_dict())
    assert second.param_groups[0]["fused"] == now and second.state[weight]["step"] == 1
    second.step()
    assert second.state[weight]["step"] == 2


def test_a_step_says_whether_its_gradient_is_finite():
    model = torch.nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimisers = [torch.optim.AdamW(model.parameters(), lr=0.1)]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert not descend(model, model(torch.ones(1, 3)).sum() * float("inf"), optimisers, scaler, 1.0)
    assert torch.equal(model.weight, before)
    assert descend(model, model(torch.ones(1, 3)).sum(), optimisers, scaler, 1.0)
    assert not torch.equal(model.weight, before)

from hippo.models import blocks
from hippo.models.blocks import UNetWithINR
from hippo.models.inr import INRHead, SineLayer
from hippo.models.norm import NormAct
from unet_inr_3d import MODELS, UNet3DWithINR, UNet3DWithINRBalanced, UNet3DWithINRLightweight, count_parameters

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize("size", [(6, 5), (4, 5, 3), (8, 8, 4)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_norm_act_is_torchs_instance_norm_and_leaky_relu(size, channels_last):
    torch.manual_seed(0)
    layer = NormAct(6).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = 3 + torch.randn(2, 6, *size, dtype=torch.double)
    x = x.to(
        memory_format=blocks.CHANNELS_LAST[len(size)] if channels_last else torch.contiguous_format
    ).requires_grad_()
    expected = F.leaky_relu(F.instance_norm(x, weight=layer.weight, bias=layer.bias), 0.01)
    assert torch.allclose(layer(x), expected, atol=1e-10)
    seed = torch.randn_like(expected)
    inputs = (x, layer.weight, layer.bias)
    for ours, theirs in zip(torch.autograd.grad(layer(x), inputs, seed), torch.autograd.grad(expected, inputs, seed)):
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_norm_act_in_bf16_is_close_to_float32():
    torch.manual_seed(0)
    layer, x = NormAct(16), torch.randn(2, 16, 16, 16, 16).to(memory_format=torch.channels_last_3d)
    assert (layer(x.bfloat16()).float() - layer(x)).abs().max() < 0.05


def test_norm_act_off_the_cpu_is_the_same(monkeypatch):
    """The branch for CUDA, run here on tensors that claim to be elsewhere: same values, one voxel included."""

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    layer = NormAct(4)
    for size in ((5, 4, 3), (1, 1, 1)):
        x = torch.randn(2, 4, *size)
        assert torch.allclose(layer(x.as_subclass(Elsewhere)).as_subclass(torch.Tensor), layer(x), atol=1e-5)


@pytest.mark.parametrize("model, parameters", [(UNet3DWithINRLightweight, 1.4e6), (UNet3DWithINRBalanced, 7.8e6)])
def test_presets(model, parameters):
    for use_inr in (True, False):
        network = model(in_channels=1, num_classes=3, use_inr=use_inr, inr_hidden_dim=32)
        assert count_parameters(network) == pytest.approx(parameters, rel=0.03)
        assert (network.inr is not None) == use_inr
    assert model().inr is not None  # on by default


@pytest.mark.parametrize("size", [(35, 51, 36), (31, 40, 24), (8, 8, 8), (5, 9, 3), (1, 1, 1)])
@pytest.mark.parametrize("use_inr", [False, True])
def test_any_size(size, use_inr):
    model = UNet3DWithINR(2, 3, base_channels=4, depth=3, use_inr=use_inr, inr_hidden_dim=8)
    for mode in (True, False):
        assert model.train(mode)(torch.randn(2, 2, *size)).shape == (2, 3, *size)


def test_padding_replicates_edges():
    model = UNet3DWithINR(base_channels=4, depth=2).eval()
    x = torch.randn(1, 1, 9, 12, 8)
    padded = F.pad(x, (0, 0, 0, 0, 1, 2), mode="replicate")
    assert torch.allclose(model(x), model(padded)[:, :, 1:10], atol=1e-5)


def test_wrong_inputs():
    model = UNet3DWithINR(base_channels=4, depth=2, deep_supervision=True)
    for shape in ((1, 2, 8, 8, 8), (1, 8, 8, 8), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match="expected \\(B, 1, D, H, W\\)"):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match="4 divides"):
        model(torch.zeros(1, 1, 9, 8, 8))


@pytest.mark.parametrize("depth, coarser", [(1, []), (2, [(1, 3, 8, 8, 4)]), (3, [(1, 3, 8, 8, 4)])])
def test_deep_supervision_returns_a_list_in_train_mode_only(depth, coarser):
    model = UNet3DWithINR(base_channels=4, depth=depth, deep_supervision=True)
    x = torch.randn(1, 1, 16, 16, 8)
    assert [tuple(y.shape) for y in model.train()(x)] == [(1, 3, 16, 16, 8), *coarser]
    assert model.eval()(x).shape == (1, 3, 16, 16, 8)
    assert torch.equal(model.eval()(x), model.train()(x)[0])


def test_outputs_are_logits_the_same_in_train_and_eval_mode():
    model, x = UNet3DWithINR(base_channels=4, use_inr=True), 10 * torch.randn(1, 1, 16, 16, 16)
    y = model.train()(x)
    assert torch.equal(y, model.eval()(x)) and not torch.allclose(y.sum(1), torch.ones(1))


@pytest.mark.parametrize("dim", [2, 3])
def test_the_inr_in_chunks_is_the_inr(dim):
    torch.manual_seed(0)
    head = INRHead(dim, 5, 3, hidden_dim=16)
    features = torch.randn(2, 5, *(7, 9, 6)[:dim])
    whole = head(features)
    for head.chunk in (1, 10, 64, 1000):
        assert torch.allclose(head(features), whole, atol=1e-6)


def test_the_inr_knows_where_it_is():
    head = INRHead(3, 5, 3, hidden_dim=16)
    y = head(torch.ones(1, 5, 6, 6, 6))
    assert y.std() > 0 and not torch.allclose(y[..., 0], y[..., 5])
    coords = head.coordinates((3, 1, 2)) * 64
    assert coords.tolist() == [[-2, 0, -1], [-2, 0, 1], [0, 0, -1], [0, 0, 1], [2, 0, -1], [2, 0, 1]]
    patch, volume = (head.coordinates((n, n, n)).unflatten(0, (n, n, n)) for n in (8, 12))
    assert torch.equal(patch, volume[2:-2, 2:-2, 2:-2])  # a voxel's coordinates do not depend on the padding about it


def test_siren_initialisation():
    torch.manual_seed(0)
    first, hidden = SineLayer(3, 512, first=True), SineLayer(512, 512)
    assert first.linear.weight.abs().max() <= 1 / 3 and hidden.linear.weight.abs().max() <= (6 / 512) ** 0.5 / 30
    # section 3.2 of the paper: activations stay arcsine-distributed, of standard deviation sqrt(1/2), through the layers
    x = first(torch.rand(4000, 3) * 2 - 1)
    for _ in range(3):
        x = SineLayer(512, 512)(x)
        assert x.std().item() == pytest.approx(0.5**0.5, abs=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name):
    args = {"base_channels": 4, "use_inr": True, "deep_supervision": True} if name == "UNet3DWithINR" else {}
    model = MODELS[name](**args)
    outputs = model(torch.randn(1, 1, 16, 16, 16))
    sum(y.square().mean() for y in (outputs if isinstance(outputs, list) else [outputs])).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


def test_two_dimensions_and_channels_of_its_own():
    model = UNetWithINR(2, 1, 3, encoder=(8, 16, 16), decoder=(12, 8), convs=1, use_inr=True, inr_hidden_dim=8)
    assert model(torch.randn(2, 1, 33, 20)).shape == (2, 3, 33, 20)
    with pytest.raises(ValueError, match="decoder stages"):
        UNetWithINR(2, 1, 3, encoder=(8, 16, 16), decoder=(8,))

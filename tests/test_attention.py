"""Attention blocks by their papers' formulas, and UNETR beside MONAI's."""

from hippo.models.attention import ATTENTION, CBAM, SqueezeExcitation
from hippo.models.blocks import CHANNELS_LAST
from hippo.models.checkpoint import load_model, save_checkpoint
from hippo.models.inference import make_preprocessing
from hippo.models.unetr import ResBlock
from model2d import UNetnnUNetLightweight
from unet_inr_3d import UNETR, UNet3DWithINR, count_parameters

import pytest
import torch
import torch.nn.functional as F

SIZES = {2: (5, 4), 3: (5, 4, 3)}


def mlp(gate, vector):
    return gate[2].weight @ F.relu(gate[0].weight @ vector + gate[0].bias) + gate[2].bias


@pytest.mark.promise("formulas")
@pytest.mark.parametrize("dim", [2, 3])
def test_squeeze_and_excitation_by_its_formula(dim):
    """Hu et al. 2018, equations 2 to 4: s = sigmoid(W2 relu(W1 z)), z the mean of each channel; the channel times s."""
    torch.manual_seed(0)
    block, x = SqueezeExcitation(dim, 32).double(), torch.randn(2, 32, *SIZES[dim], dtype=torch.double)
    assert block.gate[0].out_features == 4 and SqueezeExcitation(dim, 256).gate[0].out_features == 16
    for image, result in zip(x, block(x)):
        s = torch.sigmoid(mlp(block.gate, torch.stack([channel.mean() for channel in image])))
        for channel, factor, out in zip(image, s, result):
            assert torch.allclose(out, channel * factor)


@pytest.mark.promise("formulas")
@pytest.mark.parametrize("dim", [2, 3])
def test_cbam_by_its_formula(dim):
    """Woo et al. 2018, equations 2 and 3: sigmoid(MLP(mean) + MLP(max)) for channels; then sigmoid(conv7([mean; max]))."""
    torch.manual_seed(0)
    block, x = CBAM(dim, 8).double(), torch.randn(2, 8, *SIZES[dim], dtype=torch.double)
    conv = F.conv2d if dim == 2 else F.conv3d
    assert block.place.kernel_size == (7,) * dim
    for image, result in zip(x, block(x)):
        mean, most = (torch.stack([f(channel) for channel in image]) for f in (torch.mean, torch.max))
        factors = torch.sigmoid(mlp(block.gate, mean) + mlp(block.gate, most))
        image = torch.stack([channel * factor for channel, factor in zip(image, factors)])
        summary = torch.stack([image.mean(0), image.max(0).values])[None]
        places = torch.sigmoid(conv(summary, block.place.weight, block.place.bias, padding=3))[0]
        assert torch.allclose(result, image * places)


@pytest.mark.parametrize("kind", ["se", "cbam"])
@pytest.mark.parametrize("model", [UNet3DWithINR, UNetnnUNetLightweight])
def test_attention_in_a_network(kind, model, tmp_path):
    """It stands in each stage, keeps channels-last, runs in bf16, has gradients, and comes back from a checkpoint."""
    args = {"attention": kind} | ({"base_channels": 4, "depth": 1} if model is UNet3DWithINR else {})
    network = model(**args)
    blocks = [m for m in network.modules() if isinstance(m, ATTENTION[kind])]
    assert len(blocks) == len(network.unet.down) + len(network.unet.merge)
    x = torch.randn(1, 1, *((8, 9, 7) if network.dim == 3 else (32, 33)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    logits.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    features = torch.randn(2, 8, *[8] * network.dim).to(memory_format=CHANNELS_LAST[network.dim])
    out = ATTENTION[kind](network.dim, 8)(features)
    assert out.is_contiguous(memory_format=CHANNELS_LAST[network.dim])
    content = {"model": {"name": model.__name__, "args": args}, "model_state_dict": network.state_dict()}
    content |= {"preprocessing": make_preprocessing(), "synthetic": True}
    save_checkpoint(tmp_path / "model.pth", content)
    loaded, _ = load_model(tmp_path / "model.pth")
    with torch.inference_mode():
        assert torch.equal(loaded.model(x), network.eval()(x))


def test_without_attention_nothing_changes():
    plain = UNet3DWithINR(base_channels=4, depth=1)
    assert plain.state_dict().keys() == UNet3DWithINR(base_channels=4, depth=1, attention="none").state_dict().keys()
    assert not any(isinstance(m, (SqueezeExcitation, CBAM)) for m in plain.modules())


# ---- UNETR


def from_monai(theirs, ours):
    """Copies the weights of MONAI's UNETR into ours."""

    def conv(target, source):
        target.weight.data, bias = source.conv.weight.data, getattr(source.conv, "bias", None)
        if bias is not None:
            target.bias.data = bias.data

    def block(target, source):
        source = getattr(source, "layer", source)
        assert isinstance(target, ResBlock)
        conv(target.conv1, source.conv1)
        conv(target.conv2, source.conv2)
        if source.downsample:
            conv(target.short[0], source.conv3)

    body, vit = ours.unet, theirs.vit
    embedding = vit.patch_embedding
    body.vit.embed.load_state_dict(embedding.patch_embeddings.state_dict())
    body.vit.position.data = embedding.position_embeddings.data.transpose(1, 2).unflatten(
        2, body.vit.position.shape[2:]
    )
    for target, source in zip(body.vit.blocks, vit.blocks):
        target.norm1.load_state_dict(source.norm1.state_dict())
        target.norm2.load_state_dict(source.norm2.state_dict())
        target.qkv.load_state_dict(source.attn.qkv.state_dict())
        target.out.load_state_dict(source.attn.out_proj.state_dict())
        target.mlp[0].load_state_dict(source.mlp.linear1.state_dict())
        target.mlp[2].load_state_dict(source.mlp.linear2.state_dict())
    body.vit.norm.load_state_dict(vit.norm.state_dict())
    block(body.stem, theirs.encoder1)
    for target, source in zip(body.skips, (theirs.encoder2, theirs.encoder3, theirs.encoder4)):
        conv(target[0], source.transp_conv_init)
        for i, (up, residual) in enumerate(source.blocks):
            conv(target[1 + 2 * i], up)
            block(target[2 + 2 * i], residual)
    decoders = (theirs.decoder5, theirs.decoder4, theirs.decoder3, theirs.decoder2)
    for up, merge, source in zip(body.up, body.merge, decoders):
        conv(up, source.transp_conv)
        block(merge, source.conv_block)
    conv(ours.head, theirs.out.conv)


@pytest.mark.promise("formulas")
def test_unetr_is_monais():
    """The same output with the same weights, and the same number of parameters but for the scale and shift of our instance
    norms, and for a norm of MONAI's blocks that is never used."""
    monai = pytest.importorskip("monai.networks.nets")
    size, args = (32, 48, 16), {"hidden_size": 48, "mlp_dim": 192, "num_heads": 3, "feature_size": 4}
    theirs = monai.UNETR(1, 3, size, norm_name="instance", **args).eval()
    ours = UNETR(patch=16, width=48, layers=12, heads=3, features=4, window=size).eval()
    from_monai(theirs, ours)
    x = torch.randn(1, 1, *size)
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), atol=1e-4)
    affine = sum(p.numel() for name, p in ours.named_parameters() if ".norm" in name and "vit" not in name)
    affine += sum(p.numel() for name, p in ours.named_parameters() if ".short.1." in name)
    unused = sum(p.numel() for name, p in theirs.named_parameters() if "norm_cross_attn" in name)
    assert count_parameters(ours) - affine == count_parameters(theirs) - unused


@pytest.mark.parametrize("size", [(36, 52, 36), (31, 40, 24), (5, 3, 4)])
def test_unetr_takes_any_size(size):
    model = UNETR(width=16, layers=2, heads=2, features=4, deep_supervision=True)
    assert model.eval()(torch.randn(2, 1, *size)).shape == (2, 3, *size)
    if size == (36, 52, 36):
        fine, coarse = model.train()(torch.randn(1, 1, *size))
        assert fine.shape == (1, 3, *size) and coarse.shape == (1, 3, 18, 26, 18)


def test_unetr_places_patches_where_they_are():
    """A larger image has the position of each patch interpolated, not shifted."""
    vit = UNETR(width=16, layers=2, heads=2, features=4, window=(8, 8, 8)).unet.vit
    with torch.no_grad():
        vit.embed.weight.zero_(), vit.embed.bias.zero_()
        vit.position.copy_(torch.linspace(-1, 1, 2).view(1, 1, 2, 1, 1).expand_as(vit.position))
    taken = []
    vit.blocks[0].register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    vit(torch.zeros(1, 1, 16, 8, 8))
    ramp = taken[0][0, :, 0].view(4, 2, 2)[:, 0, 0]
    assert torch.allclose(ramp, torch.tensor([-1, -0.5, 0.5, 1]))


def test_unetr_refuses_what_does_not_fit():
    for wrong in ({"patch": 5}, {"patch": 2}, {"patch": 16, "layers": 3}, {"width": 30, "heads": 4}):
        with pytest.raises(ValueError, match="expected patches of 4, 8 or 16"):
            UNETR(**wrong)

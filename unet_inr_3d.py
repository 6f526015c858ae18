"""Names the 3D networks: U-Nets in the style of nnU-Net with an optional INR (SIREN coordinate) head, and UNETR.

    from unet_inr_3d import UNet3DWithINR, count_parameters
    model = UNet3DWithINR(in_channels=1, num_classes=3, base_channels=16, depth=3, use_inr=False)
    logits = model(torch.randn(2, 1, 35, 51, 36))  # (B, C, D, H, W), any size, to (B, num_classes, D, H, W)

hippo/models/blocks.py builds them. `python unet_inr_3d.py` prints a table of their parameters, multiply-adds and CPU
milliseconds.
"""

from functools import partial

from hippo.models.blocks import UNetWithINR, WithHeads, count_parameters  # noqa: F401 (offered here too)
from hippo.models.describe import print_models
from hippo.models.unetr import UNETRBody
from hippo.options import configure, run_script


class UNet3DWithINR(UNetWithINR):
    """The customisable 3D U-Net. It is named after the INR head that it can have; by default it has none, since no gain
    was found.

    in_channels:      channels of the image.
    num_classes:      classes, background included.
    base_channels:    channels of the first stage; each pooling doubles them, up to max_channels (nnU-Net's limit).
    depth:            number of poolings.
    use_inr:          add the INR head, whose width is inr_hidden_dim; inr_chunk: voxels that it evaluates at a time (0: all).
    deep_supervision: in train mode, forward returns a list of logits, finest first.
    convs:            convolutions per stage.
    dropout:          probability that a channel of a stage's output is dropped in training.
    attention:        none, se (squeeze-and-excitation) or cbam, at the end of each stage.

    forward: (B, in_channels, D, H, W) of any size to logits (B, num_classes, D, H, W), see blocks.WithHeads.
    """

    def __init__(
        self,
        in_channels=1,
        num_classes=3,
        base_channels=16,
        depth=3,
        use_inr=False,
        inr_hidden_dim=64,
        deep_supervision=False,
        convs=2,
        max_channels=320,
        inr_chunk=0,
        dropout=0.0,
        attention="none",
    ):
        encoder = [min(base_channels * 2**i, max_channels) for i in range(depth + 1)]
        super().__init__(
            3,
            in_channels,
            num_classes,
            encoder,
            convs=convs,
            use_inr=use_inr,
            inr_hidden_dim=inr_hidden_dim,
            inr_chunk=inr_chunk,
            deep_supervision=deep_supervision,
            dropout=dropout,
            attention=attention,
        )


class UNet3DWithINRLightweight(UNet3DWithINR):
    """UNet3DWithINR with 16, 32, 64 and 128 channels: 1.4 M parameters."""

    def __init__(self, in_channels=1, num_classes=3, use_inr=True, inr_hidden_dim=64, **kwargs):
        super().__init__(in_channels, num_classes, 16, 3, use_inr, inr_hidden_dim, **kwargs)


class UNet3DWithINRBalanced(UNet3DWithINR):
    """UNet3DWithINR with 38, 76, 152 and 304 channels, as in the original design: 7.9 M parameters."""

    def __init__(self, in_channels=1, num_classes=3, use_inr=True, inr_hidden_dim=64, **kwargs):
        super().__init__(in_channels, num_classes, 38, 3, use_inr, inr_hidden_dim, **kwargs)


class UNETR(WithHeads):
    """A vision transformer as encoder and convolutions as decoder (Hatamizadeh et al. 2022), see hippo.models.unetr.

    patch:                voxels of a patch along each axis: 4, 8 or 16.
    width, layers, heads: numbers per patch, layers and attention heads of the transformer.
    features:             channels of the finest decoder stage; each coarser one has twice as many.
    window:               size of the image in voxels for which the patches' positions are learned.
    head_options:         use_inr, inr_hidden_dim, inr_chunk, deep_supervision; these and forward are as in UNet3DWithINR.
    """

    def __init__(
        self,
        in_channels=1,
        num_classes=3,
        patch=4,
        width=96,
        layers=6,
        heads=3,
        features=16,
        dropout=0.0,
        window=(36, 52, 36),
        **head_options,
    ):
        grid = [-(-size // patch) for size in window]
        body = UNETRBody(in_channels, patch, width, layers, heads, features, grid, dropout)
        super().__init__(3, in_channels, num_classes, body, **head_options)


MODELS = {model.__name__: model for model in (UNet3DWithINR, UNet3DWithINRLightweight, UNet3DWithINRBalanced, UNETR)}


INPUT = (1, 1, 40, 56, 40)  # shape (B, C, *S) that the table is made for
TABLE = {
    "UNet3DWithINR, depth 2 (train_3d.py's)": partial(UNet3DWithINR, depth=2),
    "the same with squeeze-and-excitation": partial(UNet3DWithINR, depth=2, attention="se"),
    "the same with CBAM": partial(UNet3DWithINR, depth=2, attention="cbam"),
    "UNet3DWithINRLightweight": UNet3DWithINRLightweight,
    "UNet3DWithINRBalanced": UNet3DWithINRBalanced,
    "UNETR": UNETR,
    "UNETR of its paper's size": partial(UNETR, patch=16, width=768, layers=12, heads=12),
}


def main():
    cfg = configure(globals())
    print_models(TABLE, tuple(cfg.input))


if __name__ == "__main__":
    run_script(main)

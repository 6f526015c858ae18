"""The 2D networks: nnU-Net-style U-Nets with an optional INR (SIREN coordinate) head, for slices of 128 x 128.

    from model2d import UNetnnUNetLightweight, count_parameters
    model = UNetnnUNetLightweight(in_channels=1, num_classes=3)
    logits = model(torch.randn(16, 1, 128, 128))  # (B, C, H, W), any size, to (B, num_classes, H, W)

Run `python model2d.py` for a table of the variants with their parameters, multiply-adds and CPU latency.
"""

from hippo.models.blocks import UNetWithINR, count_parameters  # noqa: F401 (count_parameters is offered here too)
from hippo.models.describe import print_models
from hippo.options import configure, run_script


class UNetnnUNetWithINR(UNetWithINR):
    """The customisable 2D network: two convolutions per stage, channels doubled by each of `unet_depth` poolings.

    forward: (B, in_channels, H, W) of any size to logits (B, num_classes, H, W); with deep_supervision and in train
    mode a list of logits, finest first. See blocks.UNetWithINR for the arguments.
    """

    def __init__(
        self,
        in_channels=1,
        base_channels=32,
        unet_depth=4,
        num_classes=3,
        deep_supervision=False,
        use_inr=False,
        inr_hidden_dim=64,
        dropout=0.0,
        attention="none",
    ):
        encoder = [base_channels * 2**i for i in range(unet_depth + 1)]
        super().__init__(
            2,
            in_channels,
            num_classes,
            encoder,
            use_inr=use_inr,
            inr_hidden_dim=inr_hidden_dim,
            deep_supervision=deep_supervision,
            dropout=dropout,
            attention=attention,
        )


class _Preset(UNetWithINR):
    """One convolution per stage: encoder c-2c-4c-8c, bottleneck 8c, decoder 4c-2c-c-c."""

    channels, deep_supervision = 32, False

    def __init__(self, in_channels=1, num_classes=3, use_inr=False, inr_hidden_dim=64, dropout=0.0, attention="none"):
        c = self.channels
        super().__init__(
            2,
            in_channels,
            num_classes,
            encoder=(c, 2 * c, 4 * c, 8 * c, 8 * c),
            decoder=(4 * c, 2 * c, c, c),
            convs=1,
            use_inr=use_inr,
            inr_hidden_dim=inr_hidden_dim,
            deep_supervision=self.deep_supervision,
            dropout=dropout,
            attention=attention,
        )


class UNetnnUNetLightweight(_Preset):
    """32 channels, 1.75 M parameters: the default, for a laptop."""


class UNetnnUNetSmall(_Preset):
    """16 channels, 0.44 M parameters: faster, to be averaged with other models."""

    channels = 16


class UNetnnUNetBalanced(_Preset):
    """48 channels, 3.94 M parameters."""

    channels = 48


class UNetnnUNetDeepSupervision(UNetnnUNetBalanced):
    """48 channels, 3.94 M parameters, with auxiliary outputs in training."""

    deep_supervision = True


MODELS = {
    model.__name__: model
    for model in (
        UNetnnUNetWithINR,
        UNetnnUNetSmall,
        UNetnnUNetLightweight,
        UNetnnUNetBalanced,
        UNetnnUNetDeepSupervision,
    )
}


INPUT = (1, 1, 128, 128)  # shape (B, C, *S) that the table is made for


def main():
    cfg = configure(globals())
    print_models(MODELS, tuple(cfg.input))


if __name__ == "__main__":
    run_script(main)

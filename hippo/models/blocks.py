"""Building blocks of the networks, written once for 2D and 3D: `dim` is 2 or 3 everywhere.

    ConvBlock   convolutions, each with instance norm and leaky ReLU, and attention
    UNet        encoder, bottleneck and decoder with skip connections: image in, feature maps out
    WithHeads   a body such as a U-Net, and its heads: image of any size in, logits out
    UNetWithINR the U-Net with its heads; train_3d.py's has 16, 32 and 64 channels (UNet3DWithINR in unet_inr_3d.py)

Shapes are written (B, C, *S): S is (H, W) in 2D and (D, H, W) in 3D. The style (two 3x3x3 convolutions per stage,
instance norm, leaky ReLU 0.01) is that of nnU-Net: Isensee et al., Nature Methods 18, 2021.
"""

from hippo.models.attention import ATTENTION
from hippo.models.inr import INRHead
from hippo.models.norm import NormAct

import torch
import torch.nn.functional as F
from torch import nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
UP_CONV = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class ConvBlock(nn.Sequential):
    """A stage: `convs` times (3x3(x3) convolution without bias, instance norm, leaky ReLU), then attention (none, se
    or cbam), then dropout of whole channels.

    forward: (B, in_channels, *S) to (B, out_channels, *S).
    """

    def __init__(self, dim, in_channels, out_channels, convs=2, dropout=0.0, attention="none"):
        layers = []
        for i in range(convs):
            layers += [
                CONV[dim](in_channels if i == 0 else out_channels, out_channels, 3, padding=1, bias=False),
                NormAct(out_channels),
            ]
        layers += [] if attention == "none" else [ATTENTION[attention](dim, out_channels)]
        layers += [DROPOUT[dim](dropout)] * bool(dropout)
        super().__init__(*layers)


class UNet(nn.Module):
    """The U-Net without its heads (Ronneberger et al. 2015; Cicek et al. 2016).

    dim, in_channels: 2 or 3; channels of the image.
    encoder: channels of each stage, the last one being the bottleneck; max pooling by 2 between stages.
    decoder: channels of each stage on the way up, deepest first; default: those of the encoder in reverse.
    convs:   convolutions per stage.
    dropout: probability that a channel of a stage's output is dropped in training (Tompson et al. 2015).
    attention: none, se or cbam, at the end of each stage, see hippo.models.attention.
    forward: (B, in_channels, *S), with S divisible by `stride`, to a list of the decoder's feature maps, finest last.
    Raises ValueError if the numbers of stages do not match.
    """

    def __init__(self, dim, in_channels, encoder, decoder=None, convs=2, dropout=0.0, attention="none"):
        super().__init__()
        skips = list(encoder[:-1])[::-1]
        decoder = list(decoder or skips)
        if len(decoder) != len(skips):
            raise ValueError(f"{len(encoder)} encoder stages need {len(skips)} decoder stages, not {len(decoder)}")
        self.dim, self.stride, self.decoder_channels = dim, 2 ** len(skips), decoder
        self.down = nn.ModuleList(
            ConvBlock(dim, i, o, convs, dropout, attention) for i, o in zip([in_channels, *encoder[:-1]], encoder)
        )
        self.up = nn.ModuleList(UP_CONV[dim](i, o, 2, stride=2) for i, o in zip([encoder[-1], *decoder[:-1]], decoder))
        self.merge = nn.ModuleList(ConvBlock(dim, s + o, o, convs, dropout, attention) for s, o in zip(skips, decoder))

    def encoder(self):
        """Returns the stages on the way down."""
        return self.down

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.down):
            x = block(MAX_POOL[self.dim](x, 2) if i else x)
            skips.append(x)
        skips.pop()
        outputs = []
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
            outputs.append(x)
        return outputs


class WithHeads(nn.Module):
    """A body with a 1x1 convolution as head and, with `use_inr`, an INR head whose logits are added.

    body: module with `stride` and `decoder_channels`, like UNet, that returns feature maps, finest last. forward: (B,
    in_channels, *S) of any size S to logits (B, num_classes, *S), never probabilities, in train and eval mode. The
    image is padded to a multiple of the body's stride with replicated edges, and the result is cropped back. With
    deep_supervision, and in train mode only, it returns a list: the logits, then those of the coarser decoder stages
    at 1/2, 1/4, ... of the size; S must then be a multiple of the stride. Raises ValueError for an input with the
    wrong number of dimensions or channels.
    """

    def __init__(
        self, dim, in_channels, num_classes, body, use_inr=False, inr_hidden_dim=64, inr_chunk=0, deep_supervision=False
    ):
        super().__init__()
        self.dim, self.in_channels, self.deep_supervision = dim, in_channels, deep_supervision
        self.unet = body
        *coarse, finest = body.decoder_channels
        self.head = CONV[dim](finest, num_classes, 1)
        self.inr = INRHead(dim, finest, num_classes, inr_hidden_dim, chunk=inr_chunk) if use_inr else None
        # the coarsest decoder stage has no auxiliary head, as in nnU-Net, unless it is the only one beside the finest
        supervised = coarse[1:] or coarse
        heads = (CONV[dim](c, num_classes, 1) for c in supervised)
        self.auxiliary = nn.ModuleList(heads) if deep_supervision else None
        self._initialise()

    def _initialise(self):
        if self.head.weight.is_meta:  # to be filled from a checkpoint; torch's initialisation would load its compiler
            return
        for module in self.modules():
            if isinstance(module, (*CONV.values(), *UP_CONV.values())):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x):
        dim, stride = self.dim, self.unet.stride
        if x.ndim != dim + 2 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected (B, {self.in_channels}, {'D, ' * (dim == 3)}H, W), got {tuple(x.shape)}")
        size = x.shape[2:]
        short = [-s % stride for s in size]
        if any(short):
            if self.training and self.deep_supervision:
                raise ValueError(f"deep supervision trains on sizes that {stride} divides, not {tuple(size)}")
            x = F.pad(x, [p for s in reversed(short) for p in (s // 2, s - s // 2)], mode="replicate")
        x = x.contiguous(memory_format=CHANNELS_LAST[dim])
        *coarse, features = self.unet(x)
        if any(short):
            features = features[(..., *(slice(p // 2, p // 2 + s) for p, s in zip(short, size)))]
        logits = self.head(features)
        if self.inr is not None:
            logits = logits + self.inr(features)
        if self.training and self.deep_supervision:
            return [logits] + [head(f) for head, f in zip(self.auxiliary, coarse[-len(self.auxiliary) :])][::-1]
        return logits


class UNetWithINR(WithHeads):
    """A U-Net with its heads; see UNet and WithHeads for the arguments."""

    def __init__(
        self, dim, in_channels, num_classes, encoder, decoder=None, convs=2, dropout=0.0, attention="none", **heads
    ):
        body = UNet(dim, in_channels, encoder, decoder, convs, dropout, attention)
        super().__init__(dim, in_channels, num_classes, body, **heads)


def count_parameters(model):
    """Returns the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

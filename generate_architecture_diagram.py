"""Draws the architecture of a network from the model object itself, so that the picture cannot disagree with the code.

    python generate_architecture_diagram.py                                   the default 3D network with its INR head
    python generate_architecture_diagram.py --model=UNetnnUNetLightweight --attention=cbam --out=architecture_2d.jpg
    python generate_architecture_diagram.py --model=UNETR --use_inr=False --out=architecture_unetr.jpg

A forward pass on zeros records the shape of each stage's output. The width of a box shows its channels, the height its
size (both on a logarithmic scale). Writes OUT, in a few seconds.
"""

import math
from pathlib import Path

import model2d
import unet_inr_3d
from hippo.errors import require
from hippo.models.attention import ATTENTION as ATTENTION_BLOCKS
from hippo.models.attention import CBAM, SqueezeExcitation
from hippo.models.blocks import count_parameters
from hippo.models.checkpoint import MODELS
from hippo.models.unetr import ResBlock, UNETRBody
from hippo.options import configure, run_script
from hippo.pictures import plots

import torch
from matplotlib.patches import FancyArrowPatch, Rectangle

MODEL = "UNet3DWithINR"  # a model of unet_inr_3d.py or model2d.py
UNET_DEPTH = 2  # number of poolings (UNet3DWithINR only; train_3d.py's default)
USE_INR = True  # with the INR (SIREN coordinate) head
ATTENTION = "none"  # at the end of each stage: se, cbam or none; not UNETR's
OUT = "architecture.jpg"  # picture to write, overwritten

_ENCODER, _DECODER, _HEAD, _INR = "#56B4E9", "#009E73", "#E69F00", "#CC79A7"
_GAP = 0.27  # below a box, for its size


def main():
    run(configure(globals()))


def run(cfg):
    """Draws the model of a configuration. Returns the path of the picture."""
    require(cfg.model in MODELS, f"--model={cfg.model}: expected one of {', '.join(MODELS)}")
    require(1 <= cfg.unet_depth <= 5, f"--unet_depth={cfg.unet_depth}: expected 1 to 5")
    endings = (".jpg", ".jpeg", ".png")
    require(Path(cfg.out).suffix in endings, f"--out={cfg.out}: expected a name that ends in {', '.join(endings)}")
    require(
        cfg.attention in ATTENTION_BLOCKS, f"--attention={cfg.attention}: expected one of {', '.join(ATTENTION_BLOCKS)}"
    )
    require(cfg.model != "UNETR" or cfg.attention == "none", f"--attention={cfg.attention}: UNETR attends by itself")
    args = {"depth": cfg.unet_depth} if cfg.model == "UNet3DWithINR" else {}
    args |= {"attention": cfg.attention} if cfg.attention != "none" else {}
    model = MODELS[cfg.model](use_inr=cfg.use_inr, **args)
    shape = (unet_inr_3d if model.dim == 3 else model2d).INPUT
    title = f"{cfg.model}{' with INR head' * cfg.use_inr}: {count_parameters(model):,} parameters"
    draw(model, outputs(model, shape), shape, Path(cfg.out), title)
    print(f"wrote {cfg.out}")
    return cfg.out


def outputs(model, shape):
    """Runs one forward pass. Returns {name of a submodule: shape (B, C, *S) of its output}."""
    shapes, hooks = {}, []

    def record(name):
        def hook(module, inputs, output):
            shapes[name] = tuple((output[-1] if isinstance(output, list) else output).shape)

        return hook

    for name, module in model.named_modules():
        if module is not model and module is not model.unet:  # those two return lists, or the final logits
            hooks.append(module.register_forward_hook(record(name)))
    with torch.inference_mode():
        model.eval()(torch.zeros(shape))
    for handle in hooks:
        handle.remove()
    return shapes


def convolutions(block):
    """Returns the description of a ConvBlock or ResBlock, such as "2 x conv 3x3x3, instance norm, leaky ReLU"."""
    convs = [m for m in block.children() if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d))]
    kinds = {SqueezeExcitation: ", squeeze-and-excitation", CBAM: ", CBAM", ResBlock: ", residual"}
    more = "".join(text for kind, text in kinds.items() for m in (block, *block.children()) if isinstance(m, kind))
    return f"{len(convs)} x conv {kernel(convs[0])}, instance norm, leaky ReLU{more}"


def encoder_of(unet):
    """Returns the names of the modules whose outputs the decoder uses: the skip connections, finest first, then the
    bottleneck."""
    if isinstance(unet, UNETRBody):
        return ["unet.stem", *(f"unet.skips.{i}" for i in range(len(unet.skips))), "unet.vit"]
    return [f"unet.down.{i}" for i in range(len(unet.down))]


def kernel(conv):
    """Returns the kernel size of a convolution, such as "3x3x3"."""
    return "x".join(map(str, conv.kernel_size))


class Canvas:
    """A figure for boxes, arrows and text, placed in data coordinates. size: width and height in inches."""

    def __init__(self, size):
        self.figure, self.axes = plots.panels(1, 1, size)
        self.axes.set_axis_off()

    def box(self, x, y, size, colour):
        """Draws the box of a tensor, centred at x, y. size: its shape (B, C, *S). Returns half the width and half the height
        of the box."""
        width, height = 0.16 * math.log2(size[1]) + 0.1, 0.17 * math.log2(size[2]) + 0.1
        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(Rectangle(corner, width, height, facecolor=colour, edgecolor="black"))
        self.text(x, y, size[1], fontsize=12, weight="bold")
        self.text(x, y - height / 2 - 0.05, " x ".join(map(str, size[2:])), va="top")
        return width / 2, height / 2

    def arrow(self, start, end, colour="black", style="-"):
        """Draws an arrow between two points (x, y)."""
        options = {"arrowstyle": "-|>", "mutation_scale": 14, "color": colour, "linestyle": style, "linewidth": 1.6}
        self.axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **options))

    def text(self, x, y, words, **style):
        """Writes words at a point, centred by default. style: options of matplotlib's text."""
        self.axes.text(x, y, words, **{"fontsize": 9, "ha": "center", "va": "center", **style})


def draw(model, shapes, shape, path, title):
    """Draws a model as a U, and writes the picture: encoder down on the left, decoder up on the right, skip connections
    between them, heads at the upper right.

    shapes: from `outputs`; shape: (B, C, *S) of the image; path: of the picture.
    """
    names, is_unetr = encoder_of(model.unet), isinstance(model.unet, UNETRBody)
    stages = len(names)
    canvas = Canvas((2.4 * stages + 4.3, 1.8 * stages + 1.8))
    x_down, x_up = ([sign * 1.6 * (stages - 1 - i) for i in range(stages)] for sign in (-1, 1))
    y = [-2.1 * i for i in range(stages)]
    halves = draw_encoder(
        canvas, [shapes[name] for name in names], shape, x_down, y, model.unet.vit if is_unetr else None
    )
    top_half = draw_decoder(canvas, model, shapes, x_down, x_up, y, halves)
    x_head = x_up[0] + 2.4
    draw_heads(canvas, model, shapes, x_up[0], x_head, top_half)
    note = (
        f"each box of the encoder (blue) and decoder (green): {convolutions(model.unet.merge[0])}; its channels inside, "
        "its size below\ndashed: skip connections, concatenated with what comes from below; orange: logits"
    )
    canvas.text(0, y[-1] - 1.1, note, fontsize=10)
    top = 2.4 if model.inr is not None else 1.0
    canvas.axes.set(xlim=(x_down[0] - 2.9, x_head + 1.7), ylim=(y[-1] - 1.3, top))
    plots.save(canvas.figure, path, title)


def draw_encoder(canvas, shapes, shape, x, y, vit=None):
    """Draws the image and the boxes of the encoder, centred at x[i], y[i], finest first. Returns half the width and half
    the height of each box.

    shapes: (B, C, *S) of each stage; shape: of the image; vit: the transformer of a UNETR, whose hidden states are
    enlarged to the sizes of the other stages; None: a U-Net.
    """
    halves = [canvas.box(x[i], y[i], shapes[i], _ENCODER) for i in range(len(x))]
    canvas.arrow((x[0] - 1.4, 0), (x[0] - halves[0][0], 0))
    channels = "1 channel" if shape[1] == 1 else f"{shape[1]} channels"
    words = f"image\n{channels}\n{' x '.join(map(str, shape[2:]))}"
    canvas.text(x[0] - 1.5, 0, words, ha="right", fontsize=10)
    if vit is not None:
        left = (x[-1] - halves[-1][0], y[-1])
        canvas.arrow((x[0] - 1.9, -0.5), left)
        words = f"patches of {kernel(vit.embed)},\n{len(vit.blocks)} transformer layers of {vit.blocks[0].heads} heads"
        canvas.text(left[0] - 0.1, y[-1] - 0.55, words, ha="right", va="top")
    for i in range(1, len(x)):
        if vit is None:
            start, end = (x[i - 1], y[i - 1] - halves[i - 1][1] - _GAP), (x[i], y[i] + halves[i][1])
            canvas.arrow(start, end, _ENCODER)
            canvas.text((start[0] + end[0]) / 2 - 0.25, (start[1] + end[1]) / 2 - 0.12, "max pool 2", ha="right")
        elif i < len(x) - 1:
            start, end = (x[-1] - 0.1, y[-1] + halves[-1][1]), (x[i], y[i] - halves[i][1] - _GAP)
            canvas.arrow(start, end, _ENCODER)
            canvas.text((start[0] + end[0]) / 2 - 0.25, (start[1] + end[1]) / 2 - 0.12, "up-convs", ha="right")
    return halves


def draw_decoder(canvas, model, shapes, x_down, x_up, y, halves):
    """Draws the boxes of the decoder from the bottleneck up, skip connections and auxiliary heads. Returns half the width
    and half the height of the finest box.

    shapes: from `outputs`; x_down, x_up, y: centres of the encoder's and of the decoder's boxes, finest first; halves:
    from draw_encoder.
    """
    unet, names = model.unet, encoder_of(model.unet)
    stages = len(names)
    below, top = x_down[-1], y[-1] + halves[-1][1]
    first = stages - 2 - len(model.auxiliary or [])  # the coarsest stage with an auxiliary head
    for j in range(stages - 1):  # deepest first
        i = stages - 2 - j
        width, height = canvas.box(x_up[i], y[i], shapes[f"unet.merge.{j}"], _DECODER)
        end = (x_up[i], y[i] - height - _GAP)
        canvas.arrow((below, top), end, _DECODER)
        words = f"up-conv {kernel(unet.up[j])}"
        canvas.text((below + end[0]) / 2 + 0.25, (top + end[1]) / 2 - 0.12, words, ha="left")
        canvas.arrow((x_down[i] + halves[i][0], y[i]), (x_up[i] - width, y[i]), "#777777", "--")
        skip, up = shapes[names[i]][1], shapes[f"unet.up.{j}"][1]
        canvas.text(0, y[i] + 0.1, f"{skip} + {up} channels", va="bottom", color="#555555")
        below, top = x_up[i], y[i] + height
        if first <= j < stages - 2:
            head = model.auxiliary[j - first]
            words = f"auxiliary conv {kernel(head)}:\n{head.out_channels} logits, in training"
            canvas.arrow((x_up[i] + width, y[i]), (x_up[i] + 1.2, y[i]), _HEAD)
            canvas.text(x_up[i] + 1.25, y[i], words, ha="left", bbox={"facecolor": _HEAD, "pad": 4})
    return width, height


def draw_heads(canvas, model, shapes, x_features, x_head, half_features):
    """Draws the heads between the finest box and the logits: the 1x1 convolution and, if the model has one, the INR head.

    shapes: from `outputs`; x_features, half_features: of the finest box; x_head: centre of the box of the logits.
    """
    half = canvas.box(x_head, 0, shapes["head"], _HEAD)
    canvas.arrow((x_features + half_features[0], 0), (x_head - half[0], 0), _HEAD)
    canvas.text((x_features + x_head) / 2, 0.12, f"conv {kernel(model.head)}")
    canvas.text(x_head + half[0] + 0.15, 0, f"logits\n{shapes['head'][1]} classes", ha="left", fontsize=10)
    if model.inr is None:
        return
    inr, middle, height = model.inr, (x_features + x_head) / 2, 1.9
    words = (
        f"INR head, a SIREN for each voxel: {inr.project.in_features} features projected to "
        f"{inr.project.out_features},\nwith {model.dim} coordinates; {len(inr.siren)} sine layers of "
        f"{inr.out.in_features}; {inr.out.out_features} logits, added"
    )
    canvas.text(middle, height, words, fontsize=10, bbox={"facecolor": _INR, "alpha": 0.5, "pad": 6})
    canvas.arrow((x_features, half_features[1]), (middle - 0.5, height - 0.3), _INR)
    canvas.arrow((middle + 0.5, height - 0.3), (x_head, half[1]), _INR)


if __name__ == "__main__":
    run_script(main)

"""The tables of models, of speed and of memory, from results/benchmark.json."""

from hippo.scoring.tables import markdown_table


def sections(published):
    """{name of a block: function that returns it}."""
    return {
        "models": lambda: models_table(published("benchmark.json")["models"], published("ordinary_cpu.json")["models"]),
        "peers": lambda: peers_table(published("benchmark.json")),
        "costs": lambda: costs_table(published("benchmark.json")),
    }


def models_table(with_bf16, without):
    """Parameters, multiply-adds and latency of each model, on a processor with bf16, where it was measured, and without."""
    rows = []
    for shape, key in (("128 x 128", "2d"), ("40 x 56 x 40", "3d")):
        fast = {name: milliseconds for name, _, _, milliseconds in with_bf16[key]}
        for name, parameters, multiply_adds, milliseconds in without[key]:
            row = [name, f"{parameters:,}", shape, f"{multiply_adds / 1e9:.2f} G", fast.get(name, "–"), milliseconds]
            rows.append(row)
    header = ["model", "parameters", "input", "multiply-adds", "ms on two cores with bf16", "ms without bf16"]
    return markdown_table(header, rows)


def peers_table(benchmark):
    """Our networks beside nnU-Net's and MONAI's."""
    reference_seconds = benchmark["peers"]["nnU-Net's PlainConvUNet, 32-64-128-256 channels"][
        "seconds_per_training_volume"
    ]
    rows = []
    for name, peer in benchmark["peers"].items():
        most, rate = benchmark["products"][peer["precision"]], peer["training_gflops_per_second"]
        rows.append(
            [
                name,
                f"{peer['parameters']:,}",
                f"{peer['precision']}, {peer['batch']}",
                f"{peer['seconds_per_training_volume']:.3f}",
                f"{reference_seconds / peer['seconds_per_training_volume']:.1f}",
                f"{peer['seconds_per_predicted_volume']:.3f}",
                f"{peer['peak_memory_mib']:,}",
                f"{rate} of {most} ({100 * rate / most:.0f} %)",
            ]
        )
    header = ["network", "parameters", "precision, batch", "s a training volume", "times nnU-Net's training speed"]
    last = ["s a predicted volume", "peak memory in MiB", "GFLOP/s in training, and in a matrix product"]
    return markdown_table([*header, *last], rows)


def costs_table(benchmark):
    """Slices and metrics, beside the usual way of making them."""
    slices, metrics = benchmark["slices"], benchmark["metrics"]
    rows = [
        [
            f"the slices of {slices['volumes']} volumes, in s",
            f"{slices['data_aug_seconds']:.0f} (`data_aug.py`, two cores)",
            f"{slices['plain_loop_seconds']:.0f} (a loop of scikit-image's `resize` and `warp`, one process)",
            slices["ratio"],
        ],
        [
            "NSD at two tolerances and HD95 of both labels, in ms a case",
            metrics["ours_milliseconds"],
            f"{metrics['surface_distance_milliseconds']} (the package `surface-distance`)",
            metrics["ratio"],
        ],
    ]
    return markdown_table(["", "this repository", "alternative", "speed-up"], rows)

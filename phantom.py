"""Writes a small SYNTHETIC data set in the layout and style of Task04_Hippocampus.

    python phantom.py                       24 volumes into phantom/, in about 6 seconds
    python train_3d.py --data_root=phantom --out_dir=results_phantom-3D --epochs=3

Each volume shows a curved shape of head, body and tail, cut into anterior and posterior by one coronal plane. Around it
lie structures of the same intensity (amygdala, cortex, thalamus) and of others (ventricle, white matter), under a bias
field and noise. The volumes serve to try and to test the scripts; a score on them says nothing about real scans.
dataset.json, file names and headers say that they are synthetic.
"""

from pathlib import Path

from hippo.errors import require
from hippo.files import fresh_folder, save_json
from hippo.options import configure, run_script

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

OUT_DIR = "phantom"  # folder to write; one that holds something is kept as <name>.previous-N
CASES = 24  # number of volumes
SEED = 0  # the same seed gives the same files

WHITE, GREY, FLUID = 100.0, 72.0, 22.0


def main():
    run(configure(globals()))


def run(cfg):
    """Writes the data set of a configuration; returns its folder."""
    require(cfg.cases >= 1, f"--cases={cfg.cases}: expected 1 or more")
    require(cfg.seed >= 0, f"--seed={cfg.seed}: expected 0 or more")
    root = fresh_folder(cfg.out_dir)
    names = [f"phantom_{i + 1:03d}.nii.gz" for i in range(cfg.cases)]
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for i, name in enumerate(tqdm(names, desc="phantoms", disable=None)):
        rng = np.random.default_rng([cfg.seed, i])
        image, label = make_phantom(rng)
        # one volume in five is uint8, the others float32 over four orders of magnitude; a few labels are float32
        image = (
            np.clip(image, 0, 255).round().astype(np.uint8)
            if i % 5 == 1
            else (image * 10 ** rng.uniform(-1, 3)).astype(np.float32)
        )
        label = label.astype(np.float32 if i % 12 == 6 else np.uint8)
        affine = np.eye(4)
        affine[:3, 3] = float(i % 13 != 12)
        save_nifti(root / "imagesTr" / name, image, affine)
        save_nifti(root / "labelsTr" / name, label, affine)
    save_json(
        root / "dataset.json",
        {
            "name": "Synthetic hippocampus phantoms",
            "description": "SYNTHETIC volumes made by phantom.py; no scan of a person",
            "synthetic": True,
            "seed": cfg.seed,
            "licence": "MIT",
            "tensorImageSize": "3D",
            "modality": {"0": "synthetic"},
            "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
            "numTraining": cfg.cases,
            "numTest": 0,
            "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
            "test": [],
        },
    )
    print(
        f"{cfg.cases} SYNTHETIC volumes in {root}; train on them with: python train_3d.py --data_root={root} --out_dir=results_phantom-3D"
    )
    return Path(root)


def save_nifti(path, array, affine):
    """Writes a volume in RAS with 1 mm voxels and a header that says that it is synthetic."""
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = b"SYNTHETIC phantom, no scan"
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, path)


def make_phantom(rng):
    """(image float64, label uint8) of one phantom, (D, H, W) in RAS, 1 mm voxels; rng: numpy Generator."""
    size = np.array([rng.integers(31, 44), rng.integers(40, 60), rng.integers(24, 48)])
    points = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) - (size - 1) / 2  # mm from the centre
    points = points - rng.uniform(-1.5, 1.5, 3)

    # the hippocampus: a tube of varying radius about a curved line, from tail (t = 0) to head (t = 1)
    t = np.linspace(0, 1, 60)
    length, bow, rise = rng.uniform(32, 38), rng.uniform(2.5, 5), rng.uniform(5, 8)
    line = np.stack(
        [bow * (np.sin(np.pi * t) - 0.5) + 1.5 * np.cos(2.5 * t), length * (t - 0.5), rise * ((1 - t) ** 2 - 0.3)], -1
    )
    radius = rng.uniform(0.92, 1.08) * (
        2.4 + 2.4 * np.sin(np.pi * np.clip(t / 0.9, 0, 1)) ** 0.7 + 2.6 * np.exp(-(((t - 0.8) / 0.14) ** 2))
    )
    distance = np.full(tuple(size), np.inf)
    for centre, r in zip(line, radius):
        distance = np.minimum(distance, np.sqrt((((points - centre) / (1.15, 1.0, 0.82)) ** 2).sum(-1)) / r)
    hippocampus = distance < 1 + 0.12 * smooth_noise(rng, size, 3)
    cut = line[0, 1] + length * 0.60 + rng.uniform(-0.7, 0.7)
    label = np.where(hippocampus, np.where(points[..., 1] > cut, 1, 2), 0).astype(np.uint8)

    def ellipsoid(centre, radii):
        return (((points - centre - rng.uniform(-1, 1, 3)) / radii) ** 2).sum(-1) < 1 + 0.15 * smooth_noise(
            rng, size, 3
        )

    head, body = line[50], line[28]
    image = np.where(smooth_noise(rng, size, 5) > 0.75, GREY, WHITE)
    image[points[..., 2] < body[2] - 6 + 1.5 * smooth_noise(rng, size, 4)] = GREY  # cortex below, with fluid under it
    image[points[..., 2] < body[2] - 12] = FLUID
    image[ellipsoid(body + (-9, -3, 11), (8, 10, 7))] = GREY  # thalamus
    image[ellipsoid(head + (1, 5, 8), (7, 7, 6))] = GREY  # amygdala, touching the head
    image[ellipsoid(body + (6, 4, 3), (3, 15, 3.5))] = FLUID  # ventricle along the body
    image[ellipsoid(head + (2, 8, 1), (5, 3, 3))] = FLUID
    image[hippocampus] = GREY + rng.uniform(-2, 3)

    image = gaussian_filter(image, 0.6) * (1 + 0.12 * smooth_noise(rng, size, 14)) + 5 * rng.standard_normal(
        tuple(size)
    )
    vessels = rng.random(tuple(size)) < 3e-4
    image[vessels] *= rng.uniform(1.5, 2.5)  # outliers, as in the real volumes
    return np.maximum(image, 0), label


def smooth_noise(rng, size, sigma_mm):
    """Gaussian noise of unit variance, smooth on the scale of sigma_mm."""
    noise = gaussian_filter(rng.standard_normal(tuple(size)), sigma_mm, mode="wrap")
    return noise / noise.std()


if __name__ == "__main__":
    run_script(main)

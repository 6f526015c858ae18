"""Writes a small SYNTHETIC data set in the layout and style of Task04_Hippocampus.

    python phantom.py                       24 volumes into phantom/, in about 6 seconds
    python train_3d.py --data_root=phantom --out_dir=results_phantom-3D --epochs=3
    python phantom.py --heads=4 --out_dir=phantom_heads      instead, 4 whole heads and their labels, half a minute
    python predict.py phantom_heads

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
from scipy.ndimage import affine_transform, gaussian_filter, zoom
from scipy.spatial.transform import Rotation
from tqdm import tqdm

OUT_DIR = "phantom"  # folder to write; one that holds something is kept as <name>.previous-N
CASES = 24  # number of volumes
HEADS = 0  # 0: the volumes above; n: n whole heads instead, <name>.nii.gz with labels/<name>.nii.gz (1 to 4)
SEED = 0  # the same seed gives the same files

WHITE, GREY, FLUID = 100.0, 72.0, 22.0
AIR, BONE, FAT, MUSCLE = 2.0, 10.0, 115.0, 58.0
LOW_MM, HEAD_SIZE = (
    np.array([-90.0, -112.0, -150.0]),
    (181, 225, 245),
)  # first voxel of a head about its brain, voxels of 1 mm


def main():
    run(configure(globals()))


def run(cfg):
    """Writes the data set of a configuration. Returns its folder."""
    require(cfg.cases >= 1, f"--cases={cfg.cases}: expected 1 or more")
    require(cfg.heads >= 0, f"--heads={cfg.heads}: expected 0 or more")
    require(cfg.seed >= 0, f"--seed={cfg.seed}: expected 0 or more")
    root = fresh_folder(cfg.out_dir)
    if cfg.heads:
        return write_heads(root, cfg.heads, cfg.seed)
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


def write_heads(root, count, seed):
    """Writes whole heads, each with its own size and pose, and their labels. Returns the folder."""
    (root / "labels").mkdir()
    for i in tqdm(range(count), desc="heads", disable=None):
        name = f"phantom_head_{i + 1}.nii.gz"
        write_head(root / name, root / "labels" / name, np.random.default_rng([seed, 1, i]))
    print(f"{count} SYNTHETIC heads in {root}; segment them with: python predict.py {root}")
    return Path(root)


def write_head(image_path, label_path, rng):
    """Writes a whole head with a random size and pose, and its labels."""
    image, label = make_head(rng)
    change = np.diag(rng.uniform(0.93, 1.07, 3)) @ turn(rng.uniform(-8, 8, 3))
    image, label = scan_head(image, label, change, rng)
    affine = np.eye(4)
    affine[:3, 3] = LOW_MM
    save_nifti(image_path, image, affine)
    save_nifti(label_path, label, affine)


def save_nifti(path, array, affine):
    """Writes a volume in RAS with 1 mm voxels and a header that marks it as synthetic."""
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = b"SYNTHETIC phantom, no scan"
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, path)


def make_phantom(rng):
    """Creates one phantom. Returns (image float64, label uint8), (D, H, W) in RAS, 1 mm voxels. rng: numpy Generator."""
    size = np.array([rng.integers(31, 44), rng.integers(40, 60), rng.integers(24, 48)])
    points = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) - (size - 1) / 2  # mm from the centre
    points = points - rng.uniform(-1.5, 1.5, 3)

    label, line = make_hippocampus(points, rng)
    hippocampus = label > 0

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


def make_hippocampus(points, rng):
    """Creates a hippocampus on a grid of 1 mm. Returns (label uint8 (D, H, W), its curved centre line (60, 3) from
    tail to head).

    points: (D, H, W, 3) in mm from its centre.
    """
    size = points.shape[:3]
    # a tube of varying radius about a curved line, from tail (t = 0) to head (t = 1)
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
    return np.where(hippocampus, np.where(points[..., 1] > cut, 1, 2), 0).astype(np.uint8), line


def make_head(rng):
    """Creates a whole head: skin, skull, brain with ventricles, and both hippocampi. Returns (image float32 without
    noise, label uint8: 1 left anterior, 2 left posterior, 3 right anterior, 4 right posterior), HEAD_SIZE in RAS, 1 mm
    voxels."""
    image = _outside_the_brain()
    x, y, z = _axes()
    folds, fine = _coarse_noise(rng, 4), _coarse_noise(rng, 2.2)
    cerebrum, cerebellum = _ball((0, -5, 16), (67, 86, 62)), _ball((0, -58, -42), (52, 32, 26))
    lobes = np.minimum(_ball((-40, -8, -20), (29, 52, 26)), _ball((40, -8, -20), (29, 52, 26)))  # temporal
    stem = _ball((0, -26, -40), (15, 13, 48)) < 1
    skull = (_ball((0, -5, 14), (70, 89, 67)) < 1) & (z > -45)
    image[skull | (lobes < 1.12) | (cerebellum < 1.15) | stem] = FLUID
    inside = ((cerebrum < 1) & ((z >= -12) | (y <= -70))) | (lobes < 1)
    depth = np.maximum((1 - np.sqrt(lobes)) * 27, np.where(z < -12, -9, (1 - np.sqrt(cerebrum)) * 66))  # mm
    image[inside & (depth > 1.2 + folds)] = GREY
    image[inside & (depth > 5.5 + 3 * folds)] = WHITE
    image[inside & (np.abs(x) < 1.3) & (_ball((0, -5, 8), (40, 42, 24)) > 1)] = FLUID  # between the hemispheres
    image[cerebellum < 1] = GREY
    image[cerebellum < 0.55 + 0.25 * fine] = WHITE
    image[stem] = 0.95 * WHITE
    label = np.zeros(HEAD_SIZE, np.uint8)
    for side in (-1, 1):
        for centre, radii, shade in (
            ((12, 2, 14), (7, 34, 9), FLUID),  # lateral ventricle
            ((11, -16, 3), (9, 15, 9), GREY + 8),  # thalamus
            ((27, 6, 4), (8, 20, 12), GREY),  # putamen
            ((13, 14, 10), (4, 16, 6), GREY),  # caudate
        ):
            image[_ball((side * centre[0], *centre[1:]), radii) < 1] = shade
        _add_hippocampus(image, label, side, rng)
    return image, label


def _outside_the_brain():
    """Returns the skin, skull, face, eyes and neck of a head."""
    x, y, z = _axes()
    image = np.full(HEAD_SIZE, AIR, np.float32)
    skin = np.minimum(_ball((0, -5, 12), (78, 98, 76)), _ball((0, 35, -55), (58, 62, 70)))
    neck = np.sqrt((x / 58) ** 2 + ((y + 15) / 62) ** 2) + 0 * z
    image[(skin < 1) | ((neck < 1) & (z < -40))] = MUSCLE
    image[(skin < 1) & (skin > 0.9)] = FAT
    image[(neck < 1) & (neck > 0.92) & (z < -60)] = FAT
    image[_ball((0, -5, 12), (73, 93, 71)) < 1] = BONE
    for side in (-1, 1):
        image[_ball((side * 32, 74, -32), (14, 14, 13)) < 1] = FLUID
    image[_ball((0, 65, -60), (14, 30, 22)) < 1] = AIR  # nose and mouth
    return image


def _add_hippocampus(image, label, side, rng):
    """Draws a hippocampus and its surroundings into a head. side: -1 left, 1 right."""
    middle = np.array([side * 27.0, -22.0, -15.0]) + rng.uniform(-1.5, 1.5, 3)
    low = np.round(middle - LOW_MM - (20, 32, 20)).astype(int)
    bbox = tuple(slice(start, start + n) for start, n in zip(low, (41, 65, 41)))
    grid = np.meshgrid(*(LOW_MM[axis] + np.arange(p.start, p.stop) for axis, p in enumerate(bbox)), indexing="ij")
    points = (np.stack(grid, -1) - middle) * (side, 1, 1)  # the shapes are those of a right one
    found, line = make_hippocampus(points, rng)
    tail, body, head = line[5], line[28], line[50]

    def within(centre, radii):
        return (((points - centre) / radii) ** 2).sum(-1) < 1

    part = image[bbox]
    part[within(body, (11, 19, 9)) | within(head, (13, 11, 11)) | within(tail, (10, 10, 9))] = WHITE
    part[within(head + (0, 9, 5), (8, 7, 7))] = GREY  # amygdala
    part[within(body + (7, 2, 3), (2.6, 17, 3.4))] = FLUID  # temporal horn of the ventricle
    part[within(head + (3, 7.5, 1), (8, 2.2, 5.5))] = FLUID  # its tip, between head and amygdala
    part[within(body + (-10, 2, 2), (3.5, 20, 6))] = FLUID  # cistern
    part[within(body + (-4, 3, -12), (9, 22, 3.2))] = GREY  # parahippocampal cortex
    part[found > 0] = GREY + rng.uniform(-2, 3)
    label[bbox] = np.where(found > 0, found + (2 if side > 0 else 0), label[bbox])


def scan_head(image, label, change, rng):
    """Simulates a scan of a head after a linear transform (3, 3) about the centre of the array, with blur, a bias
    field and noise. Returns (image float32, label uint8)."""
    steps, middle = np.linalg.inv(change), (np.array(image.shape) - 1) / 2
    start = middle - steps @ middle
    image = affine_transform(image, steps, start, order=1, mode="nearest")
    label = affine_transform(label, steps, start, order=0, mode="constant")
    x, y, z = (axis / 100 for axis in _axes())
    bias = np.exp(rng.uniform(-0.1, 0.1) * x + rng.uniform(-0.1, 0.1) * y + rng.uniform(-0.1, 0.1) * z)
    image = gaussian_filter(image, 0.6) * bias.astype(np.float32)
    return np.maximum(image + 4 * rng.standard_normal(image.shape, np.float32), 0), label


def turn(degrees):
    """Returns the rotation matrix (3, 3) for angles about x, y and z."""
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def _axes():
    """Returns broadcastable coordinates in mm of a head's voxels along x, y and z, relative to the centre of its
    brain."""
    return np.ogrid[tuple(slice(low, low + n) for low, n in zip(LOW_MM.astype(np.float32), HEAD_SIZE))]


def _ball(centre, radii):
    """Returns a field on the grid of a head that is below 1 inside an ellipsoid (mm)."""
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(_axes(), map(np.float32, centre), map(np.float32, radii)))


def _coarse_noise(rng, sigma_mm, step=3):
    """Returns smooth_noise on the grid of a head, drawn on a grid of `step` mm."""
    coarse = smooth_noise(rng, [-(-n // step) + 1 for n in HEAD_SIZE], sigma_mm / step).astype(np.float32)
    return zoom(coarse, step, order=1)[tuple(map(slice, HEAD_SIZE))]


def smooth_noise(rng, size, sigma_mm):
    """Returns Gaussian noise of unit variance, smooth on the scale of sigma_mm."""
    noise = gaussian_filter(rng.standard_normal(tuple(size)), sigma_mm, mode="wrap")
    return noise / noise.std()


if __name__ == "__main__":
    run_script(main)

"""Hostile files: the answer is a result or one clear line, never a traceback, a hang or a crash."""

import gzip
import random
import struct
import time
import tracemalloc
import zipfile
import zlib

import predict
from hippo.data.nifti import read_nifti
from hippo.errors import UserError
from hippo.heads.locate import load_locator
from hippo.heads.scan import read_scan
from hippo.heads.segment import segment
from hippo.models.checkpoint import load_model, save_checkpoint
from hippo.models.inference import make_preprocessing
from unet_inr_3d import UNet3DWithINR

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import one_error_line

CPU = torch.device("cpu")
ARGS = {"base_channels": 2, "depth": 1, "convs": 1}


def checkpoint(path, **changes):
    """A small checkpoint, some of its entries replaced."""
    model = {"name": "UNet3DWithINR", "args": ARGS}
    content = {"model": model, "model_state_dict": UNet3DWithINR(**ARGS).state_dict()}
    content |= {"preprocessing": make_preprocessing(), "synthetic": False}
    save_checkpoint(path, {**content, **changes})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(checkpoint(tmp_path_factory.mktemp("model") / "model.pth"))[0]


def volume(path, **fields):
    """A valid NIfTI file of 14 x 16 x 18 mm, some fields of its header replaced."""
    array = np.random.default_rng(0).integers(0, 400, (14, 16, 18)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    if fields:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        header = nib.Nifti1Header(content[:348], check=False)
        for name, value in fields.items():
            header[name] = value
        content = header.binaryblock + content[348:]
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def segment_file(model, path):
    """What predict.py does with a file and a model."""
    locator = load_locator("pretrained/locate.pth")
    return segment([model], locator, read_scan(path), CPU, None, False, "left")


def outcome(function, *args):
    """ "ok" or "refused"; anything else than a UserError fails the test, and more than 1 GiB."""
    tracemalloc.start()
    try:
        function(*args)
        result = "ok"
    except UserError as error:
        assert str(error)
        result = "refused"
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2**30, peak
    return result


# ---- headers


@pytest.mark.promise("hostile_files")
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "fields",
    [
        {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},  # terabytes
        {"dim": [3, -14, 16, 18, 1, 1, 1, 1]},
        {"dim": [3, 0, 16, 18, 1, 1, 1, 1]},
        {"dim": [7, 14, 16, 18, 32767, 32767, 32767, 32767]},
        {"dim": [-1, 14, 16, 18, 1, 1, 1, 1]},
        {"dim": [3, 200, 200, 200, 1, 1, 1, 1]},  # more than the file holds
        {"srow_x": [np.nan, 0, 0, 0]},
        {"srow_x": [0, 0, 0, 0]},
        {"srow_x": [1e38, 0, 0, 0], "srow_y": [0, 1e38, 0, 0], "srow_z": [0, 0, 1e38, 0]},
        {"srow_x": [1e-30, 0, 0, 0]},
        {"pixdim": [1, 0, 0, 0, 1, 1, 1, 1], "sform_code": 0, "qform_code": 0},
        {"pixdim": [1, np.inf, 1, 1, 1, 1, 1, 1], "sform_code": 0},
        {"scl_slope": np.inf, "scl_inter": 0},
        {"scl_slope": 1e38, "scl_inter": 1e38},
        {"vox_offset": 3e38},
        {"vox_offset": 1e9},
        {"vox_offset": np.nan},
        {"datatype": 4096},
        {"datatype": 128, "bitpix": 24},  # colours
        {"datatype": 1792, "bitpix": 128},  # complex
        {"sizeof_hdr": 12},
    ],
)
def test_hostile_headers(tmp_path, model, fields, ending):
    path = volume(tmp_path / f"scan{ending}", **fields)
    assert outcome(segment_file, model, path) == "refused"


@pytest.mark.promise("hostile_files")
def test_gz_bombs(tmp_path, model):
    whole = gzip.decompress(volume(tmp_path / "scan.nii.gz").read_bytes())
    # a valid volume with 256 MiB of zeros behind it: what the header promises is read, no more
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = b"\0" * 2**20
    content = bomb.compress(whole) + b"".join(bomb.compress(zeros) for _ in range(256)) + bomb.flush()
    (tmp_path / "tail.nii.gz").write_bytes(content)
    assert outcome(segment_file, model, tmp_path / "tail.nii.gz") == "ok"
    # extensions of the header that reach far into the zeros
    header = nib.Nifti1Header(whole[:348], check=False)
    header["vox_offset"] = 2**29
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = bomb.compress(header.binaryblock + b"\1\0\0\0" + struct.pack("<ii", 2**29 - 352, 4))
    content += b"".join(bomb.compress(zeros) for _ in range(256)) + bomb.flush()
    (tmp_path / "extension.nii.gz").write_bytes(content)
    assert outcome(segment_file, model, tmp_path / "extension.nii.gz") == "refused"
    # the same within the first bytes, where an honest extension may be
    header["vox_offset"] = 400
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = bomb.compress(header.binaryblock + b"\1\0\0\0" + struct.pack("<ii", 2**31 - 16, 4))
    content += b"".join(bomb.compress(zeros) for _ in range(256)) + bomb.flush()
    (tmp_path / "near.nii.gz").write_bytes(content)
    assert outcome(segment_file, model, tmp_path / "near.nii.gz") == "refused"


def test_honest_extensions_are_read(tmp_path, model):
    path = volume(tmp_path / "scan.nii")
    image = nib.load(path)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a remark of some length"))
    nib.save(image, tmp_path / "remark.nii.gz")
    assert outcome(segment_file, model, tmp_path / "remark.nii.gz") == "ok"


@pytest.mark.parametrize("name", ["scan", "scan.nii.bz2", "scan.mgh", "scan.hdr"])
def test_other_formats_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b" + bytes(400))
    with pytest.raises(UserError, match="expected a NIfTI file|rename it to scan.mgz|its other half is missing"):
        read_nifti(tmp_path / name)


# ---- checkpoints


class Virtual(dict):
    """A state dict whose tensors are views of one number, as large as one likes."""

    def __init__(self, **args):
        with torch.device("meta"):
            shapes = {name: v.shape for name, v in UNet3DWithINR(**args).state_dict().items()}
        super().__init__({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()})


HOSTILE_UNETR = [{}, {"patch": 0}, {"patch": 5}, {"width": 0}, {"width": 1024, "layers": 1024}, {"layers": 10**9}]
HOSTILE_UNETR += [{"heads": 0}, {"heads": 3}, {"features": -1}, {"window": [10**9] * 3}, {"attention": "se"}]


@pytest.mark.promise("hostile_files")
@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "UNet3DWithINR", "args": {"base_channels": 10**6}}},
        {"model": {"name": "UNet3DWithINR", "args": {"depth": 10**9}}},
        {"model": {"name": "UNet3DWithINR", "args": {**ARGS, "max_channels": "many"}}},
        {"model": {"name": "UNet3DWithINR", "args": [1]}},
        {"model": {"name": "UNet3DWithINR", "args": {**ARGS, "in_channels": 3}}},
        {"model": {"name": ["UNet3DWithINR"], "args": ARGS}},
        {"model": {"name": "os.system", "args": ARGS}},
        {"model": 3},
        {"model_state_dict": [torch.zeros(3)]},
        {"model_state_dict": {"unet.down.0.0.weight": torch.zeros(3)}},
        {"model_state_dict": {k: v * float("nan") for k, v in UNet3DWithINR(**ARGS).state_dict().items()}},
        {"model_state_dict": {k: v.to(torch.complex64) for k, v in UNet3DWithINR(**ARGS).state_dict().items()}},
        {"model_state_dict": {k: 1.0 for k in UNet3DWithINR(**ARGS).state_dict()}},
        {
            "model": {"name": "UNet3DWithINR", "args": {"base_channels": 320, "max_channels": 320, "depth": 5}},
            "model_state_dict": dict(Virtual(base_channels=320, max_channels=320, depth=5)),
        },
        *({"model": {"name": "UNETR", "args": args}} for args in HOSTILE_UNETR),
        *(
            {"model": {"name": "UNet3DWithINR", "args": {**ARGS, "attention": kind}}}
            for kind in ("se", "x", ["se"], 1, None)
        ),
        {"model": {"name": "UNet3DWithINR", "args": {**ARGS, "convs": 1000}}},
        {"model": {"name": "UNet3DWithINR", "args": {**ARGS, "inr_chunk": -1}}},
        {"preprocessing": {"slice_size": True}},
        {"preprocessing": {"slice_size": "128"}},
        {"preprocessing": {"flip_axes": "xx"}},
        {"preprocessing": {"flip_axes": "x" * 1000}},
        {"preprocessing": {"flip_axes": 7}},
        {"preprocessing": {"window": [36, 52]}},
        {"preprocessing": {"window": [36, 52, 10**9]}},
        {"preprocessing": {"spacing_mm": float("nan")}},
        {"preprocessing": {"spacing_mm": 0.0}},
        {"preprocessing": {"normalisation": 3}},
        {"preprocessing": {"colour": "red"}},
        {"preprocessing": [1]},
    ],
)
def test_hostile_checkpoints(tmp_path, changes):
    assert outcome(load_model, checkpoint(tmp_path / "model.pth", **changes)) == "refused"


def test_a_compressed_checkpoint_is_refused(tmp_path):
    """torch.load would unpack whatever a small compressed file promises."""
    path = checkpoint(tmp_path / "model.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry) + bytes(2**20))
    assert outcome(load_model, packed) == "refused"


@pytest.mark.promise("hostile_files")
def test_a_malicious_pickle_runs_nothing(script, tmp_path, phantoms, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return exec, ("import pathlib; pathlib.Path('pwned').touch()",)

    path = tmp_path / "evil.pth"
    torch.save({"model": Evil(), "model_state_dict": {}}, path)
    one_error_line(script(predict, phantoms / "imagesTr", f"--checkpoint={path}"), "evil.pth")
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "predictions").exists()


# ---- mutations


def mutate(content, rng):
    """A few bytes changed, a piece cut out, doubled or zeroed, or the end cut off."""
    content = bytearray(content)
    kind = rng.choice(["bytes", "bytes", "header", "header", "cut", "double", "zero", "end"])
    if kind in ("bytes", "header"):
        limit = min(len(content), 400) if kind == "header" else len(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            content[rng.randrange(limit)] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        return bytes(content)
    start = rng.randrange(len(content))
    size = rng.choice([1, 7, 64, 1000])
    if kind == "end":
        return bytes(content[:start])
    piece = content[start : start + size]
    content[start : start + size] = {"cut": b"", "double": piece * 2, "zero": bytes(len(piece))}[kind]
    return bytes(content)


def fuzz(tmp_path, model, count, seed):
    """Mutates volumes and checkpoints `count` times in all; returns how often there was a result and a refusal."""
    rng, counts = random.Random(seed), {"ok": 0, "refused": 0}
    plain = volume(tmp_path / "seed.nii").read_bytes()
    packed = volume(tmp_path / "seed.nii.gz").read_bytes()
    weights = checkpoint(tmp_path / "seed.pth").read_bytes()
    for number in range(count):
        kind = rng.choice(["plain", "packed", "repacked", "checkpoint"])
        path = tmp_path / f"case_{number}{'.pth' if kind == 'checkpoint' else '.nii' if kind == 'plain' else '.nii.gz'}"
        if kind == "checkpoint":
            path.write_bytes(mutate(weights, rng))
            result = outcome(load_model, path)
        else:
            content = {"plain": plain, "packed": packed, "repacked": plain}[kind]
            content = mutate(content, rng)
            path.write_bytes(gzip.compress(content, 1) if kind == "repacked" else content)
            result = outcome(segment_file, model, path)
        counts[result] += 1
        path.unlink()
    return counts


def test_a_hundred_mutations(tmp_path, model):
    counts = fuzz(tmp_path, model, 100, 0)
    assert counts["refused"] > 20 and counts["ok"] > 10


@pytest.mark.promise("hostile_files")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_mutations(tmp_path, model):
    start = time.perf_counter()
    counts = fuzz(tmp_path, model, 3000, 1)
    assert counts["refused"] > 600 and counts["ok"] > 300
    assert time.perf_counter() - start < 600  # 0.2 s each: nothing hangs

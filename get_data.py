"""Downloads Task04_Hippocampus of the Medical Segmentation Decathlon (28 MB), verifies and unpacks it.

    python get_data.py        about a minute on a home connection; does nothing when the data is already there and whole
    python get_data.py --anatomies=anatomies      instead, 20 label maps of heads (32 MB) that train_locate.py draws from
    python get_data.py --manual=manual      instead, 20 heads labelled by hand (47 MB), to measure on and not to learn from

A download that was broken off goes on where it stopped. The archive (CC-BY-SA 4.0; Antonelli et al., Nature
Communications 13, 4128, 2022) holds 260 labelled volumes (imagesTr, labelsTr) and 130 without labels (imagesTs).
The label maps are those of BBillot/SynthSeg (Apache 2.0). The heads labelled by hand are OASIS scans with labels provided
by Neuromorphometrics, Inc. under academic subscription (CC BY-NC: not for commercial use). references/anatomies.json and
references/manual.json hold addresses and checksums.
"""

import errno
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path, PurePosixPath

from hippo.data.cases import list_cases, list_volumes
from hippo.data.nifti import read_nifti, save_labels, to_stored_orientation
from hippo.errors import UserError, require
from hippo.files import ROOT, digest, load_json, save_json, save_text, set_aside
from hippo.options import configure, run_script

import numpy as np
from tqdm import tqdm

DATA_ROOT = "Task04_Hippocampus"  # folder to unpack into
URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar"  # the official archive
MD5 = "9d24dba78a72977dbd1d2e110310f31b"  # of the archive
ANATOMIES = ""  # folder for the label maps; empty: get the Decathlon's data
MANUAL = ""  # folder for the heads labelled by hand (CC BY-NC); empty: get the Decathlon's data
TIMEOUT_S = 30.0  # seconds without an answer before giving up

_CHUNK = 1 << 18
_DRAWN = {48: "L", 47: "R"}  # label of each hippocampus in the maps drawn by hand


def main():
    run(configure(globals()))


def run(cfg):
    """Downloads, verifies and unpacks the data. Returns True, or False if they were there already."""
    if cfg.anatomies:
        return get_anatomies(Path(cfg.anatomies), load_json(ROOT / "references/anatomies.json", "git"), cfg.timeout_s)
    if cfg.manual:
        return get_manual(Path(cfg.manual), load_json(ROOT / "references/manual.json", "git"), cfg.timeout_s)
    root = Path(cfg.data_root).absolute()
    if (root / "imagesTr").exists():
        problem = find_problem(root)
        if not problem:
            print(f"{root} is there and whole: nothing to do")
            return False
        print(f"{root} is not whole ({problem}): getting it again")
    archive = root.with_name(f"{root.name}.tar")
    if not (archive.is_file() and digest(archive, "md5") == cfg.md5):
        download(cfg.url, archive, cfg.md5, cfg.timeout_s)
    unpack(archive, root)
    problem = find_problem(root)
    require(not problem, f"{root}: the archive was unpacked but {problem}; report this, with the address {cfg.url}")
    archive.unlink()
    print(f"{len(list_cases(root)[0])} labelled cases in {root}; next: python train_3d.py")
    return True


def get_anatomies(folder, source, timeout_s):
    """Downloads label maps that are missing or damaged. Returns True, or False if all were there already.

    source: {"url", "sha256": {name: checksum}}.
    """
    missing = [
        name
        for name, sha256 in source["sha256"].items()
        if not (folder / name).is_file() or digest(folder / name) != sha256
    ]
    for name in missing:
        download(source["url"] + name, folder / name, source["sha256"][name], timeout_s, "sha256")
    print(f"{len(source['sha256'])} anatomies in {folder}; next: python train_locate.py --anatomies={folder}")
    return bool(missing)


def get_manual(folder, source, timeout_s):
    """Downloads heads with hippocampi drawn by hand into a BIDS folder: the scans as they are, a mask of each hippocampus
    in derivatives/manual/. Returns True, or False if all were there already.

    source: {"source", "licence", "url", "scans": {number: participant, session, age, sex, scan_sha256, labels_sha256}}.
    """
    print(f"licence: {source['licence']}")
    missing, people = False, {}
    for number, scan in source["scans"].items():
        place = f"{scan['participant']}/{scan['session']}".rstrip("/")
        path = folder / place / "anat" / f"{place.replace('/', '_')}_T1w.nii.gz"
        masks = {
            label: folder / "derivatives/manual" / place / path.name.replace("T1w", f"hemi-{side}_mask")
            for label, side in _DRAWN.items()
        }
        people[scan["participant"]] = f"{scan['participant']}\t{scan['age']}\t{scan['sex']}"
        if path.is_file() and digest(path) == scan["scan_sha256"] and all(mask.is_file() for mask in masks.values()):
            continue
        missing, labels = True, path.with_name("labels.nii.gz")
        download(f"{source['url']}{number}_glm.nii.gz", labels, scan["labels_sha256"], timeout_s, "sha256")
        array, image = read_nifti(labels)
        for label, mask in masks.items():
            mask.parent.mkdir(parents=True, exist_ok=True)
            drawn = to_stored_orientation((array == label).astype(np.uint8), image)
            save_labels(mask, drawn, image, "hippocampus drawn by hand")
        download(f"{source['url']}{number}_SS.nii.gz", path, scan["scan_sha256"], timeout_s, "sha256")
        labels.unlink()
    save_text(folder / "participants.tsv", "\n".join(["participant_id\tage\tsex", *people.values(), ""]))
    description = {"Name": source["source"], "BIDSVersion": "1.9.0", "DatasetType": "raw", "License": source["licence"]}
    save_json(folder / "dataset_description.json", description)
    print(f"{len(source['scans'])} heads in {folder}; next: python -m tools.truth --manual={folder}")
    return missing


def find_problem(root):
    """Reads every file of a Decathlon folder and verifies its checksum. Returns what is wrong, or "" if nothing is."""
    try:
        for case in list_cases(root)[0]:
            read_nifti(case.image)
            read_nifti(case.label)
        for path in list_volumes(root / "imagesTs"):  # may be absent: training needs none of it
            read_nifti(path)
    except UserError as error:
        return str(error)
    return ""


def download(url, archive, checksum, timeout_s=30.0, algorithm="md5"):
    """Downloads url to `archive` through <archive>.part, resuming an existing part, then verifies the checksum. A
    resumed part with a wrong checksum is deleted and downloaded once more from the start. Raises UserError; the part
    is kept if it can be resumed."""
    part = archive.with_name(archive.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        resumed = part.stat().st_size if part.exists() else 0
        try:
            _fetch(url, part, resumed, timeout_s)
        except urllib.error.HTTPError as error:
            if error.code == 416 and resumed:  # the part is as long as the file, or longer: its checksum decides
                pass
            else:
                raise UserError(
                    f"{url}: the server answered {error.code} {error.reason}; check --url, or download the archive by hand to {archive}"
                ) from None
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(f"{part}: could not be written ({error}); is there room?") from None
            reason = getattr(error, "reason", None) or error
            raise UserError(
                f"{url}: no connection or a broken one ({reason}); run python get_data.py again to go on, "
                f"or download the archive by hand to {archive}"
            ) from None
        except ValueError as error:
            raise UserError(f"--url={url}: not an address ({error})") from None
        found = digest(part, algorithm)
        if found == checksum:
            os.replace(part, archive)
            return
        part.unlink()
        if not resumed:
            raise UserError(
                f"{url}: the download's {algorithm.upper()} is {found}, expected {checksum}; it was "
                "deleted: run python get_data.py again, or check --url and --md5"
            )
        print("the download that was resumed is damaged: starting from the beginning")


def _fetch(url, part, resumed, timeout_s):
    request = urllib.request.Request(url, headers={"Range": f"bytes={resumed}-"} if resumed else {})
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        resumed = resumed if response.status == 206 else 0  # 200: the server sends it all again
        length = response.headers.get("Content-Length")
        total = resumed + int(length) if length else None
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(
                total=total,
                initial=resumed,
                desc=part.name.removesuffix(".part"),
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            if total and file.tell() < total:
                raise OSError(f"{file.tell():,} of {total:,} bytes arrived")


def unpack(archive, root):
    """Unpacks the regular files below the archive's top folder into root, each completely or not at all. An existing
    file of the same name is kept as <name>.previous-N. Raises UserError, before anything is written into root, for an
    entry outside the folder or a broken archive."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as temporary:
        temporary = Path(temporary)
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    parts = PurePosixPath(member.name.replace("\\", "/")).parts
                    safe = (
                        parts
                        and not member.name.startswith(("/", "\\"))
                        and ".." not in parts
                        and not any(":" in part for part in parts)
                    )
                    require(
                        safe and (member.isfile() or member.isdir()),
                        f"{archive}: its entry {member.name!r} is a link or would land outside the folder; nothing was unpacked: "
                        "delete the archive and get it from the official address",
                    )
                    if member.isdir() or len(parts) < 2 or parts[-1].startswith("._"):
                        continue
                    target = temporary.joinpath(*parts[1:])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with tar.extractfile(member) as source, open(target, "wb") as file:
                        shutil.copyfileobj(source, file)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(
                f"{archive}: not a whole tar archive ({error}); delete it and run python get_data.py again"
            ) from None
        for item in sorted(temporary.iterdir()):
            target = root / item.name
            set_aside(target)
            item.rename(target)


if __name__ == "__main__":
    run_script(main)

"""What the inputs of a command hold: scans, folders of scans, or a BIDS data set."""

import contextlib
import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from hippo.data.cases import GET_DATA, case_id
from hippo.data.formats import ENDINGS, advice, has_ending, is_dicom
from hippo.errors import require
from hippo.heads.result import readable
from hippo.study.sharing import holds_results

DESCRIPTION = "dataset_description.json"  # a folder that holds it is a BIDS data set

_BESIDE_SCANS = (".json", ".tsv", ".csv", ".txt", ".md", ".bval", ".bvec", ".png", ".jpg", ".html", ".pdf", ".log")
_NO_PEOPLE = ("sub-emptyroom",)  # of MEG data sets
_DICOM = "DICOM files; convert their series with dcm2niix"
_NO_SCANS = ("derivatives", "labels", "labelsTr", "labelsTs")  # folders inside others that hold none


class Item(NamedTuple):
    """A scan of a study: its name in the results (its path without the ending, from the folder that was searched, with
    slashes), its file, and why it cannot be done, else empty. participant_id, session_id: in a BIDS data set; etiv_mm3: its
    own intracranial volume, or None; label: what its rows call it, if not by its path."""

    name: str
    path: Path
    problem: str = ""
    participant_id: str = ""
    session_id: str = ""
    etiv_mm3: float | None = None
    label: str = ""


def is_bids(path):
    """Whether a path is the root of a BIDS data set."""
    return (Path(path) / DESCRIPTION).is_file()


def find_t1(root, participants="", sessions=""):
    """The Items of the T1-weighted scans of a BIDS data set, sorted; derivatives and other files are left out. A person
    who has none, in these sessions, is an Item with a problem.

    participants, sessions: the labels to take, with or without sub- and ses-, as in "01" or "['01', '02']"; empty: all.
    Raises UserError where a label is not in the data set, and where no scan is left.
    """
    root, found = Path(root), {}
    scans = (path for path in _anatomical(root) if _is_t1(path) and has_ending(path))
    for path in sorted(path for path in scans if case_id(path).endswith("_T1w")):
        parts = path.relative_to(root).parts
        name = "/".join((*parts[:-1], case_id(path)))
        found.setdefault(name, Item(name, path, "", parts[0], parts[1] if len(parts) == 4 else ""))
    items = list(found.values())
    require(
        items,
        f"{root}: a BIDS data set without T1-weighted scans; expected files such as sub-01/anat/sub-01_T1w.nii.gz",
    )
    people = {path.name: path for path in root.glob("sub-*") if path.is_dir() and path.name not in _NO_PEOPLE}
    wanted_people = _wanted(root, participants, "sub-", people)
    wanted_sessions = _wanted(root, sessions, "ses-", {item.session_id for item in items} - {""})
    items = [
        item
        for item in items
        if item.participant_id in (wanted_people or people)
        and (not wanted_sessions or item.session_id in wanted_sessions)
    ]
    for name in sorted((wanted_people or people.keys()) - {item.participant_id for item in items}):
        if not wanted_sessions or any((people[name] / session).is_dir() for session in wanted_sessions):
            items.append(Item(name, people[name], _why_no_t1(root, people[name], wanted_sessions), name))
    require(items, f"{root}: none of these participants has a T1-weighted scan in these sessions")
    return sorted(items, key=lambda item: item.name)


def _wanted(root, text, prefix, there):
    """The labels that an option names, with their prefix; none: empty. Raises UserError for one that is not there."""
    wanted = {prefix + label.removeprefix(prefix) for label in re.findall(r"[\w+-]+", str(text))}
    missing, there = ", ".join(sorted(wanted - {*there})), sorted(there)
    few = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "") or f"none with {prefix}"
    require(not missing, f"{root}: no T1-weighted scan of {missing}; there are {few}")
    return wanted


def _anatomical(root):
    """The files in the anat/ folders of a BIDS data set."""
    return [p for middle in ("", "ses-*/") for p in root.glob(f"sub-*/{middle}anat/*") if not p.name.startswith(".")]


def _is_t1(path):
    """Whether a file of a BIDS data set is a T1-weighted scan by its name."""
    return path.name.startswith("sub-") and "_T1w." in path.name and not path.name.endswith(_BESIDE_SCANS)


def _why_no_t1(root, folder, sessions):
    """What to say of a person without a T1-weighted scan, in these sessions if there are any."""
    images = sorted(path for path in _anatomical(root) if folder in path.parents and has_ending(path))
    images = [path for path in images if not sessions or sessions & {*path.parts}]
    text = " ".join((f"no T1-weighted scan (_T1w.nii.gz) of {folder.name}", *sorted(sessions)))
    if not images:
        return text
    few = ", ".join(path.name for path in images[:3]) + (", ..." if len(images) > 3 else "")
    return f"{text}, but {few}; to segment such a scan: python predict.py {images[0]}"


def left_out(inputs, out_dir):
    """{file or folder: why it is not taken} of what lies in folders and BIDS data sets and could be meant."""
    result = {}
    for root in (Path(path) for path in inputs if Path(path).is_dir()):
        if is_bids(root):
            files = [path for path in _anatomical(root) if _is_t1(path) and not has_ending(path)]
            sessions = [path for path in root.glob("sub-*/ses-*") if not any(map(_is_t1, path.glob("anat/*")))]
            others = dict.fromkeys(sessions, "no T1-weighted scan in this session")
            taken = {item.path for item in find_t1(root)}
            scans = (path for path in _anatomical(root) if _is_t1(path) and has_ending(path))
            twice = [path for path in scans if path not in taken and not path.name.lower().endswith(".img")]
            others |= dict.fromkeys(twice, "there is another file of this name, or it is no _T1w")
        else:
            files, folders = _walk(root, out_dir)
            files = [path for path in files if not has_ending(path)]
            others = dict.fromkeys(folders, "a folder of results, labels or derivatives")
        for path in files:
            if path.parent not in others and (why := _why_no_scan(path)):
                others[path.parent if why is _DICOM else path] = why
        result |= {readable(os.path.abspath(path)): why for path, why in others.items()}
    return result


def _why_no_scan(path):
    """Why a file is left out; empty for one that is no image and goes with the scans, such as a table."""
    name = path.name.lower()
    if name.endswith(_BESIDE_SCANS):
        return ""
    with contextlib.suppress(OSError):  # a file that cannot be read
        if path.is_file() and is_dicom(path):
            return _DICOM
    return advice(path) if advice(path) != "convert it" else "not one of " + ", ".join(ENDINGS)


def find_items(inputs, out_dir):
    """The Items of files and folders; folders are searched with all that lie in them, but for hidden ones, results, and
    those of derivatives and labels. Each has a name of its own, whatever the letters' case."""
    items = []
    for path in map(Path, inputs):
        scans = search(path, out_dir) if path.is_dir() else []
        items += [Item((scan.parent / case_id(scan)).relative_to(path).as_posix(), scan) for scan in scans]
        if not path.is_dir():
            missing = not path.exists() and path.name in ("imagesTr", "imagesTs")
            items.append(Item(case_id(path), path, f"no such folder; get data with: {GET_DATA}" if missing else ""))
        elif not scans:
            items.append(Item(path.resolve().name, path, why_empty(path)))
    once = {}
    for item in items:
        once.setdefault(os.path.abspath(item.path), item)
    return _told_apart(list(once.values()))


def search(folder, out_dir):
    """The scans in a folder and in those inside it, sorted; of a pair the header alone."""
    found = [path for path in _walk(folder, out_dir)[0] if has_ending(path)]
    headers = {path.with_suffix("") for path in found if path.suffix.lower() == ".hdr"}
    return sorted(p for p in found if p.suffix.lower() != ".img" or p.with_suffix("") not in headers)


def _walk(folder, out_dir):
    """(the files in a folder and in those inside it, sorted, but for hidden ones, results, and folders of derivatives and
    labels; these folders). Links are followed, circles are not."""
    found, skipped, seen = [], [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        parent = Path(parent)
        here = parent.resolve()
        if here in seen or here == Path(out_dir).resolve() or holds_results(parent):
            skipped += [parent] * (here not in seen and here != Path(out_dir).resolve())
            folders.clear()
            continue
        seen.add(here)
        skipped += [parent / name for name in folders if name in _NO_SCANS]
        folders[:] = sorted(name for name in folders if name not in _NO_SCANS and not name.startswith("."))
        found += [parent / name for name in files if not name.startswith(".")]
    return sorted(found), sorted(skipped)


def _told_apart(items):
    """The Items with names that differ: those of equal names get their path from their common folder; where that is not
    enough, the ending of the file, or a number."""
    groups, taken, result = {}, set(), []
    for item in items:
        groups.setdefault(folded(item.name), []).append(os.path.dirname(os.path.abspath(item.path)))
    common = {}
    for name, folders in groups.items():
        with contextlib.suppress(ValueError):  # Windows: on different drives
            common[name] = os.path.commonpath(folders)
    for item in items:
        key, name = folded(item.name), item.name
        if len(groups[key]) > 1 and key in common:
            folder = os.path.dirname(os.path.abspath(item.path))
            name = Path(os.path.relpath(folder, common[key]), case_id(item.path)).as_posix()
        if folded(name) in taken:
            name = f"{name.rpartition('/')[0]}/{item.path.name}".lstrip("/")
        numbered, n = name, 2
        while folded(numbered) in taken:
            numbered, n = f"{name}-{n}", n + 1
        taken.add(folded(numbered))
        readable = numbered.encode("utf-8", "replace").decode()  # file names of other encodings
        result.append(item._replace(name=readable))
    return result


def folded(name):
    """A name as file systems compare it that ignore the letters' case and how accents are written."""
    return unicodedata.normalize("NFC", name).casefold()


def real_path(path):
    """A file's path by real folders, so that links to a folder and other spellings of it are one."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def longer_names(path, name):
    """Names for a file with more and more of its folders, and then with numbers."""
    parents = Path(path).parts[1:-1]
    for depth in range(1, len(parents) + 1):
        longer = "/".join((*parents[-depth:], case_id(path)))
        yield longer.encode("utf-8", "replace").decode()  # file names of other encodings
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def why_empty(folder):
    """What to say of a folder without scans."""
    with contextlib.suppress(OSError):  # a file that cannot be read
        if any(path.is_file() and is_dicom(path) for path in folder.rglob("*")):
            return f"DICOM files; convert them first, and then predict the new folder: dcm2niix -z y -o FOLDER {folder}"
    return "no .nii.gz, .nii, .mgz, .mgh or .hdr files in this folder; name the folder that holds the scans"

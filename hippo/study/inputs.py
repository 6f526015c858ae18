"""Finds the scans in the inputs of a command: files, folders, series of DICOM files, or a BIDS data set."""

import contextlib
import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from hippo.data.cases import GET_DATA, case_id
from hippo.data.formats import ENDINGS, advice, files_of, has_ending
from hippo.errors import require
from hippo.heads.result import readable
from hippo.study.series import Series
from hippo.study.sharing import holds_results

DESCRIPTION = "dataset_description.json"  # a folder with this file is a BIDS data set

_BESIDE_SCANS = (".json", ".tsv", ".csv", ".txt", ".md", ".bval", ".bvec", ".png", ".jpg", ".html", ".pdf", ".log")
_NO_PEOPLE = ("sub-emptyroom",)  # in MEG data sets
_NO_SCANS = ("derivatives", "labels", "labelsTr", "labelsTs")  # subfolders that are not searched for scans


class Item(NamedTuple):
    """A scan of a study. name: its name in the results (path relative to the searched folder, with slashes, without
    the extension); path: its file; problem: why it cannot be processed, else empty; participant_id, session_id: in a
    BIDS data set; etiv_mm3: a given intracranial volume, or None; label: its name in the table, if not its path;
    series: what is to be converted or unpacked first, else None (path then stands for it)."""

    name: str
    path: Path
    problem: str = ""
    participant_id: str = ""
    session_id: str = ""
    etiv_mm3: float | None = None
    label: str = ""
    series: Series | None = None

    @property
    def files(self):
        """Its files: of a scan one or a pair, of a series many, or the .zip file that holds it."""
        if not self.series:
            return files_of(self.path)
        source = Path(self.series.source)
        return [source / name for name in self.series.files] if source.is_dir() else [source]


def is_bids(path):
    """Whether a path is the root of a BIDS data set."""
    return (Path(path) / DESCRIPTION).is_file()


def lacks_description(path):
    """Whether a folder holds T1-weighted scans that are named as in a BIDS data set, but is not the root of one."""
    return not is_bids(path) and any(map(_is_t1, _anatomical(Path(path))))


def find_t1(root, participants="", sessions=""):
    """Finds the T1-weighted scans of a BIDS data set. Returns sorted Items; derivatives and other files are left out.
    A participant without such a scan in these sessions becomes an Item with a problem.

    participants, sessions: the labels to take, with or without sub- and ses-, as in "01" or "['01', '02']"; empty:
    all. Raises UserError if a label is not in the data set, or if no scan is left.
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
    """Returns the set of labels that an option names, with their prefix; empty if it names none. Raises UserError for
    unknown labels."""
    wanted = {prefix + label.removeprefix(prefix) for label in re.findall(r"[\w+-]+", str(text))}
    missing, there = ", ".join(sorted(wanted - {*there})), sorted(there)
    few = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "") or f"none with {prefix}"
    require(not missing, f"{root}: no T1-weighted scan of {missing}; there are {few}")
    return wanted


def _anatomical(root):
    """Returns the files in the anat/ folders of a BIDS data set."""
    return [p for middle in ("", "ses-*/") for p in root.glob(f"sub-*/{middle}anat/*") if not p.name.startswith(".")]


def _is_t1(path):
    """Whether a file of a BIDS data set is a T1-weighted scan, judged by its name."""
    return path.name.startswith("sub-") and "_T1w." in path.name and not path.name.endswith(_BESIDE_SCANS)


def _why_no_t1(root, folder, sessions):
    """Returns the message for a participant without a T1-weighted scan, in these sessions if any are given."""
    images = sorted(path for path in _anatomical(root) if folder in path.parents and has_ending(path))
    images = [path for path in images if not sessions or sessions & {*path.parts}]
    text = " ".join((f"no T1-weighted scan (_T1w.nii.gz) of {folder.name}", *sorted(sessions)))
    if not images:
        return text
    few = ", ".join(path.name for path in images[:3]) + (", ..." if len(images) > 3 else "")
    return f"{text}, but {few}; to segment such a scan: python predict.py {images[0]}"


def left_out(inputs, out_dir, chosen=None):
    """Returns {file, folder or series: reason} for everything in folders, .zip files and BIDS data sets that is skipped
    but may have been meant as input. chosen: see find_items."""
    result, chosen = {}, chosen or {}
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
            (files, folders), known = walk(root, out_dir), _dicom_files(chosen.get(root, []))
            files = [path for path in files if not has_ending(path) and path not in known]
            others = dict.fromkeys(folders, "a folder of results, labels or derivatives")
        strange = {path: why for path in files if path.parent not in others and (why := _why_no_scan(path))}
        if strange and chosen.get(root):  # such as the viewer on a CD
            strange = {root / "...": f"neither DICOM nor scans: {len(strange)} files"}
        result |= {readable(os.path.abspath(path)): why for path, why in (others | strange).items()}
    for root, discs in chosen.items():
        for disc, taken in discs:
            not_taken = {series.label: series.why or "not asked for" for series in disc.series if series not in taken}
            if not taken and not _is_row(root, disc, bool(search(root, out_dir))):
                not_taken[disc.path] = disc.why_none
            result |= {readable(os.path.abspath(path)): why for path, why in not_taken.items()}
    return result


def _why_no_scan(path):
    """Returns why a file is left out, or an empty text if it is no image but belongs to the scans, such as a table."""
    name = path.name.lower()
    if name.endswith(_BESIDE_SCANS):
        return ""
    return advice(path) if advice(path) != "convert it" else "not one of " + ", ".join(ENDINGS)


def find_items(inputs, out_dir, chosen=None):
    """Returns the Items of files and folders. Folders are searched recursively, except hidden folders, results,
    derivatives and labels. Every Item has a unique name, even if case is ignored.

    chosen: {input: [(Disc, its Series to take)]}, see dicom.choose.
    """
    items, chosen = [], chosen or {}
    for path in map(Path, inputs):
        discs = chosen.get(path, [])
        known = _dicom_files(discs)
        scans = [scan for scan in search(path, out_dir) if scan not in known]
        found = [Item((scan.parent / case_id(scan)).relative_to(path).as_posix(), scan) for scan in scans]
        for disc, taken in discs:
            folder = Path(_unzipped(os.path.relpath(disc.source, path)) if path.is_dir() else "", disc.part)
            found += [
                Item((folder / one.name).as_posix(), one.path, one.problem, label=str(one.label), series=one)
                for one in taken
            ]
            if not taken and _is_row(path, disc, bool(scans)):
                hint = "; to take one all the same: --series=NUMBER" * bool(disc.series)
                found.append(Item(_unzipped((path.resolve() / folder).name), disc.path, disc.why_none + hint))
        if not found and path.is_dir():
            found = [Item(path.resolve().name, path, _why_empty(discs))]
        elif not found and path not in chosen:
            missing = not path.exists() and path.name in ("imagesTr", "imagesTs")
            found = [Item(case_id(path), path, f"no such folder; get data with: {GET_DATA}" if missing else "")]
        items += found
    once = {}
    for item in items:
        once.setdefault(os.path.abspath(item.path), item)
    return _told_apart(list(once.values()))


def _is_row(root, disc, beside_scans):
    """Whether a Disc of which nothing is taken is a failed row, as of a person without a T1-weighted scan."""
    is_empty = not (disc.series or disc.unread or disc.problem)
    return root == disc.source and not root.is_dir() or not (beside_scans or is_empty)


def _dicom_files(discs):
    """Returns the files of some Discs, and their .zip files."""
    sources = {disc.source for disc, _ in discs}
    return {disc.source / name for disc, _ in discs for name in disc.files} | sources


def _unzipped(name):
    """Returns the name of a folder or .zip file, or a path of such names, without the extension."""
    return re.sub(r"\.zip(?=/|\\|$)", "", name, flags=re.IGNORECASE)


def search(folder, out_dir):
    """Returns the sorted scans in a folder and its subfolders; of a .hdr and .img pair only the header."""
    found = [path for path in walk(folder, out_dir)[0] if has_ending(path)]
    headers = {path.with_suffix("") for path in found if path.suffix.lower() == ".hdr"}
    return sorted(p for p in found if p.suffix.lower() != ".img" or p.with_suffix("") not in headers)


def walk(folder, out_dir):
    """Walks a folder and its subfolders. Returns (sorted files, skipped folders). Skips hidden files and folders,
    results, derivatives and labels. Follows links, but not in circles."""
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
    """Returns the Items with unique names. Items of equal name get their path from their common folder; if that is not
    enough, also the extension of the file, or a number."""
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
            name = Path(_unzipped(os.path.relpath(folder, common[key])), _stem(item.path)).as_posix()
        if folded(name) in taken and not item.series:
            name = f"{name.rpartition('/')[0]}/{item.path.name}".lstrip("/")
        numbered, n = name, 2
        while folded(numbered) in taken:
            numbered, n = f"{name}-{n}", n + 1
        taken.add(folded(numbered))
        readable = numbered.encode("utf-8", "replace").decode()  # file names of other encodings
        result.append(item._replace(name=readable))
    return result


def folded(name):
    """Returns a name as file systems compare it that ignore case and the way accents are encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def real_path(path):
    """Returns the path of a file with its folder resolved, so that links to the folder and other spellings compare equal."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def longer_names(path, name):
    """Yields names for a file or series with more and more of its parent folders, then with numbers."""
    parents = tuple(map(_unzipped, Path(path).parts[1:-1]))
    for depth in range(1, len(parents) + 1):
        longer = "/".join((*parents[-depth:], _stem(path)))
        yield longer.encode("utf-8", "replace").decode()  # file names of other encodings
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _stem(path):
    """Returns the name of a scan without its extension, or of a series without its id, see Series.path."""
    return re.sub(r"(?<=\w)-[0-9a-f]{16}$", "", case_id(path))


def _why_empty(discs):
    """Returns the message for a folder without scans."""
    if discs:
        return "; ".join(disc.why_none for disc, _ in discs)
    return "no .nii.gz, .nii, .mgz, .mgh, .hdr or DICOM files in this folder; name the folder that holds the scans"

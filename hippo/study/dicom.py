"""Finds the series of DICOM files in folders and .zip files."""

import re
from pathlib import Path
from typing import NamedTuple

from hippo.data.cases import case_id
from hippo.data.dicom import read_header
from hippo.data.formats import has_ending, is_pair
from hippo.errors import UserError, require
from hippo.heads.result import readable
from hippo.study.archives import files_in, is_zip, opened
from hippo.study.inputs import walk
from hippo.study.series import Series, describe, hashed

_FEW = 3  # Discs whose series are all listed


class Disc(NamedTuple):
    """Series that lie together: of a CD, a person's folder, or a .zip file.

    source, part: see Series; series: sorted by number; files: names of all of its DICOM files, also those without an
    image; unread: number of its files that begin like DICOM and are broken; problem: why it cannot be read.
    """

    source: Path
    part: str
    series: list
    files: tuple = ()
    unread: int = 0
    problem: str = ""

    @property
    def path(self):
        """Its folder or .zip file."""
        return Path(self.source, self.part)

    @property
    def why_none(self):
        """Why none of its series is taken."""
        if self.problem or not self.series:
            empty = "DICOM files that cannot be read; export them again, not compressed" if self.unread else ""
            return self.problem or empty or "no MRI in it; expected DICOM files of a series, or scans"
        texts = [f"{series.name}: {series.why}" for series in self.series[:4]] + ["..."] * (len(self.series) > 4)
        return f"no T1-weighted head in 3D ({', '.join(texts)})"


def read_zip(path, **limits):
    """Returns the Discs of a .zip file, with the scans in it. limits: see files_in."""
    path = Path(path)
    try:
        sizes = files_in(path, **limits)
        headers, unread = _read_headers(path, sizes)
    except (UserError, OSError) as error:
        return [Disc(path, "", [], problem=str(error).removeprefix(f"{path}: "))]
    names = [name for name in sizes if has_ending(name) and name not in headers]
    pairs = {Path(name).with_suffix("") for name in names if name.lower().endswith(".hdr")}
    first = [n for n in names if not (n.lower().endswith(".img") and Path(n).with_suffix("") in pairs)]
    scans = [_scan_in(path, name, names) for name in first]
    discs = _discs_of(path, headers, unread)
    if scans or not discs:
        nested = any(map(is_zip, sizes)) and not scans
        discs.append(Disc(path, "", scans, problem="a .zip file in a .zip file; unpack it first" * nested))
    return discs


def _scan_in(path, name, names):
    """Returns the Series that stands for a scan in a .zip file, with both files of a pair."""
    stem = Path(name).with_suffix("")
    both = [n for n in names if is_pair(Path(n)) and Path(n).with_suffix("") == stem]
    files = tuple(both) if is_pair(Path(name)) else (name,)
    return Series(path, "", files, hashed(name), scan=(Path(name).parent / case_id(name)).as_posix())


def read_folder(folder, files):
    """Returns the Discs among some files in a folder."""
    folder = Path(folder)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files if path.is_file()}
    return _discs_of(folder, *_read_headers(folder, sizes))


def _discs_of(source, headers, unread):
    """Returns the Discs of {name: Header}: one for each folder that holds studies of its own, so that CDs and persons
    are told apart."""
    discs = []
    for part, own in _split("", headers).items():
        images = {name: header for name, header in own.items() if header.is_image}
        if images or unread:
            discs.append(Disc(source, part, _series_of(source, part, images), tuple(own), unread))
        unread = 0
    return discs or [Disc(source, "", [], tuple(headers), unread)] * bool(headers)


def _split(part, headers):
    """Returns {folder: {name: Header}}: the folders in the folder `part`, each split likewise, if there are several and
    no study lies in two of them, except as a copy; else `part`."""
    children = {}
    for name, header in headers.items():
        child, slash, _ = name.removeprefix(f"{part}/" if part else "").partition("/")
        children.setdefault(child * bool(slash), {})[name] = header
    images = {child: [h.values for h in own.values() if h.is_image] for child, own in children.items()}
    studies, instances = (
        [{values.get(f"{name}_uid") for values in own} for own in images.values() if own]
        for name in ("study", "instance")
    )
    if images.get("") or len(studies) < 2 or _overlap(studies) and not _overlap(instances):
        return {part: headers}
    found = {}
    for child, own in children.items():
        found |= _split("/".join(filter(None, (part, child))), own) if child else {part: own}
    return found


def _overlap(sets):
    return sum(map(len, sets)) > len(set.union(*sets))


def _read_headers(source, sizes):
    """Returns ({name: Header} of the DICOM files in a folder or .zip file, number of them with a broken header).
    sizes: {name: bytes}."""
    headers, unread = {}, 0
    with opened(source) as open_file:
        for name, size in sizes.items():
            try:
                with open_file(name) as file:
                    header = read_header(file, size)
            except OSError:  # no permission, or a fault of the drive
                continue
            if header:
                headers[name] = header
                unread += not header.is_image and (header.is_cut or not header.values)
    return headers, unread


def _series_of(source, part, headers):
    """Returns the Series of some headers, sorted by number. A file that is there twice counts once."""
    groups, seen = {}, set()
    for name, header in headers.items():
        instance = header.values.get("instance_uid") or name
        if instance not in seen:
            groups.setdefault(header.values["series_uid"], {})[name] = header
        seen.add(instance)
    found = [describe(source, part, uid, own) for uid, own in groups.items()]
    return sorted(found, key=lambda series: (series.number, series.id))


def find_discs(inputs, out_dir):
    """Returns {input: Discs}: the Discs in folders and .zip files, and those of the DICOM files among the inputs, which
    count for their folder."""
    discs, loose = {}, {}
    for path in map(Path, inputs):
        if path.is_dir():
            files, _ = walk(path, out_dir)
            discs[path] = read_folder(path, [file for file in files if not is_zip(file)])
            discs[path] += [disc for file in files if is_zip(file) for disc in read_zip(file)]
        elif path.is_file() and is_zip(path):
            discs[path] = read_zip(path)
        elif path.is_file() and not has_ending(path):
            loose.setdefault(path.parent, []).append(path)
    for folder, files in loose.items():
        found = read_folder(folder, files)
        mine = [file for file in files if any(file.name in disc.files for disc in found)]
        discs |= dict.fromkeys(mine, []) | dict.fromkeys(mine[:1], found)
    return discs


def choose(discs, text=""):
    """Returns {input: [(Disc, its Series to take)]} by the option --series: all, numbers such as 4 or "[4, 5]", or empty
    for T1-weighted heads in 3D. Raises UserError for another text, and for a number that no series has.

    discs: see find_discs.
    """
    known = re.fullmatch(r"|all|[\[(]?\d+(, ?\d+)*[\])]?", text)
    require(known, f"--series={text}: expected all, or numbers as in --series=4")
    wanted = set(map(int, re.findall(r"\d+", text)))
    there = {series.number for found in discs.values() for disc in found for series in disc.series if not series.scan}
    missing, some = (", ".join(map(str, sorted(some))) or "none" for some in (wanted - there, there))
    require(wanted <= there, f"--series={text}: no series {missing}; there are {some}")

    def is_wanted(series):
        if series.scan or not text:
            return not series.why
        return series.is_mri if text == "all" else series.number in wanted

    return {path: [(disc, [*filter(is_wanted, disc.series)]) for disc in found] for path, found in discs.items()}


def listing(chosen):
    """Returns a text that lists the series of DICOM files, which of them are taken, and why others are not. Of more than
    a few Discs it has a line each. chosen: see choose."""
    chosen = [pair for found in chosen.values() for pair in found if any(not series.scan for series in pair[0].series)]
    lines = []
    for disc, taken in chosen:
        names = ", ".join(series.name for series in taken) or "none"
        lines.append(f"{disc.path}: {len(disc.series)} series; taken: {names}")
        for series in disc.series if len(chosen) <= _FEW else []:
            reason = "taken" if series in taken else f"not taken: {series.why or 'not asked for'}"
            lines.append(f"  {series.name}: {series.grid}; {series.problem or reason}")
        lines += [f"  {series.name}: {series.note}" for series in taken if series.note]
        if len({series.study for series in disc.series} - {""}) > 1:
            lines.append("  series of several studies in one place: are they of one person?")
        if disc.unread:
            lines.append(f"  DICOM files that cannot be read: {disc.unread}")
    return readable("\n".join(lines))

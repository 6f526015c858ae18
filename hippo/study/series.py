"""What a series of DICOM files is, and whether it is a T1-weighted head in 3D."""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hippo.data.dicom import OF_FRAMES, numbers

import numpy as np

_PATTERNS = (  # kinds of series, by words of their description, protocol or sequence; the first that fits counts
    ("localizer", r"LOCALI[SZ]ER|SCOUT|SURVEY|3-?PL"),
    ("part", r"INV-?\d|T1[ _-]?(IMAGES|MAP)"),  # of an MP2RAGE
    ("T1", r"(?<![A-Z])T1(?!\d)|MP-?2?RAGE"),
    ("FLAIR", r"FLAIR|DARK.?FL|SPCIR"),
    ("SWI", r"SWI|SWAN|T2_?\*|VENBOLD"),
    ("T2", r"(?<![A-Z])T2(?!\d)|CISS|FIESTA|SPC|TSE"),
    ("PD", r"\bPD|PROTON"),
    ("DWI", r"DWI|DTI|DIFF|TRACEW|\bADC"),
    ("EPI", r"EP2D|\bEPI|BOLD|FMRI"),
    ("angiography", r"TOF|ANGIO|\bMR[AV]\b"),
    ("perfusion", r"\bP?C?ASL|PERF|DSC|DCE"),
    ("field_map", r"FIELD.?MAP|\bB[01]\b"),
    ("T1", r"SPGR|BRAVO|TFL|TFE|FLASH|MDEFT"),
)
_KINDS = {kind for kind, _ in _PATTERNS}
_NO_SCANS = {  # in the type of an image
    "LOCALIZER": "localizer",
    "MPR": "a reformatted series",
    "REFORMATTED": "a reformatted series",
    "MIP": "a projection",
    "PROJECTION IMAGE": "a projection",
    "SUBTRACT": "a difference",
    "P": "phase",
    "PHASE": "phase",
    "PHASE MAP": "phase",
    "R": "real part",
    "I": "imaginary part",
    "T1 MAP": "a map of T1",
    "T2 MAP": "a map of T2",
    "ADC": "a map of diffusion",
}
_THICK_MM = 2.0  # slices at most this thick are a volume in 3D
_HEAD_MM = 100  # a head extends at least so far
_LONGEST_ECHO_MS = 12, 35  # of a T1-weighted series; if its description says T1: of fast spin echoes
_LONGEST_INVERSION_MS = 1500  # of a T1-weighted series
_UNEVEN = 0.1  # of the spacing of slices


class Series(NamedTuple):
    """A series of DICOM files, or a scan in a .zip file.

    source: folder or .zip file; part: folder in it that holds the study, if it holds several; files: names in the
    source; id: hash of its UID, or of its name; study: hash of the UID of its study; number: of the series; kind: one
    of _KINDS or the modality; size: voxels along columns, rows and slices; voxel_mm: their lengths; why: why it is not
    taken unless it is asked for; problem: why it cannot be segmented; note: what is to be looked at; scan: of a scan in
    a .zip file, its name without the extension.
    """

    source: Path
    part: str
    files: tuple
    id: str
    study: str = ""
    number: int = 0
    kind: str = ""
    size: tuple = ()
    voxel_mm: tuple = ()
    why: str = ""
    problem: str = ""
    note: str = ""
    scan: str = ""

    @property
    def name(self):
        """Its name in the results: number and kind, no text of the header."""
        return self.scan or f"S{self.number}_{self.kind}"

    @property
    def label(self):
        """Its name in the table: source and name."""
        return Path(self.source, self.part, self.name)

    @property
    def path(self):
        """A path that stands for it in the records of a study: its source, name and id."""
        return self.label if self.scan else self.label.with_name(f"{self.name}-{self.id}")

    @property
    def is_mri(self):
        """Whether it holds images of MRI."""
        return self.kind in (*_KINDS, "MR")

    @property
    def grid(self):
        """Its size and voxels, as text."""
        voxel = " x ".join(f"{length:.2g}" for length in self.voxel_mm)
        return f"{' x '.join(map(str, self.size))} voxels of {voxel} mm" if self.voxel_mm else "unknown voxels"


def series_id(path):
    """Returns the id in the path of a Series of DICOM files, see Series.path; empty for another path."""
    found = re.search(r"S\d+_\w+-([0-9a-f]{16})$", str(path))
    return found[1] if found else ""


def is_there(path):
    """Whether there is a file or folder, or the folder or .zip file of a series or of what was left out of it."""
    path = Path(path)
    in_folder = series_id(path) or re.fullmatch(r"S\d+_\w+|\.\.\.", path.name)
    return os.path.lexists(path) or any(p.is_file() for p in path.parents) or bool(in_folder and path.parent.is_dir())


def describe(source, part, uid, headers):
    """Returns the Series of the headers of its files."""
    first, slices = next(iter(headers.values())), _slices(headers.values())
    pixel_mm, depths = first.numbers("pixel_spacing_mm"), _depths(slices)
    gaps = np.diff(np.unique(depths))
    told = first.numbers("spacing_between_slices_mm") or first.numbers("thickness_mm")
    thickness = [float(np.median(gaps))] if len(gaps) else told[:1]
    voxel_mm = (pixel_mm[1], pixel_mm[0], abs(thickness[0])) if len(pixel_mm) == 2 and thickness else ()
    number = (first.numbers("series_number") or [0])[0]
    series = Series(
        source,
        part,
        tuple(headers),
        hashed(uid),
        hashed(first.values.get("study_uid", "")),
        int(number) if 0 <= number < 1e9 else 0,
        _kind_of(first),
        tuple(int((first.numbers(name) or [0])[0]) for name in ("columns", "rows"))
        + (len(np.unique(depths)) or len(slices),),
        voxel_mm,
    )
    problem = _problem_of(headers.values(), slices, depths, gaps)
    return series._replace(why=_why_not(first, series), problem=problem, note=_note_of(headers.values()))


def _slices(headers):
    """Returns [(position text, orientation text, echo texts)] of the slices of a series, in files of one or of many."""
    slices = []
    for header in headers:
        has_many = (header.numbers("frames") or [1])[0] > 1
        count = len(header.frames["position_mm"]) if has_many else 0
        of = {name: texts if count == len(texts) else [] for name, texts in header.frames.items()}
        for i in range(count or 1):
            position, orientation, echo = (
                of[name][i] if count and of[name] else header.values.get(name, "") for name in OF_FRAMES
            )
            slices.append((position, orientation, (header.values.get("echo_number"), echo)))
    return slices


def _orientations(slices):
    return {tuple(np.round(numbers(orientation), 2)) for _, orientation, _ in slices}


def _depths(slices):
    """Returns the positions in mm of slices along their normal; none if they are not known, or not parallel."""
    orientation = np.array(numbers(slices[0][1]))
    positions = [numbers(position) for position, _, _ in slices]
    if len(_orientations(slices)) > 1 or len(orientation) != 6 or any(len(position) != 3 for position in positions):
        return np.array([])
    return np.round(np.array(positions) @ np.cross(orientation[:3], orientation[3:]), 2)


def _kind_of(header):
    """Returns the kind of a series: of MRI one of _KINDS by its description, else by its protocol or sequence; else its
    modality."""
    modality = header.text("modality")
    for name in ("description", "protocol", "sequence_name") if modality == "MR" else ():
        kind = next((kind for kind, words in _PATTERNS if re.search(words, header.text(name))), "")
        if kind:
            return kind
    return modality if re.fullmatch("[A-Z]{2,4}", modality) else "unknown"


def _why_not(header, series):
    """Returns why a series is no T1-weighted head in 3D; empty if it is one, or if nothing speaks against it."""
    scanning = header.text("scanning_sequence").split("\\")
    echo, inversion = ((header.numbers(f"{name}_time_ms") or [0])[0] for name in ("echo", "inversion"))
    thickness, is_t1 = series.voxel_mm[2] if series.voxel_mm else 0, series.kind == "T1"
    extent = np.array(series.size) * series.voxel_mm if series.voxel_mm else np.zeros(3)
    types = [_NO_SCANS[word] for word in header.text("image_type").split("\\") if word in _NO_SCANS]
    reasons = {
        f"{series.kind}, no MRI": not series.is_mri,
        f"{types[0] if types else ''}": types,
        f"{series.kind.replace('_', ' ')}, not T1-weighted": not is_t1 and series.kind in _KINDS,
        "one slice": series.size[2] == 1,
        f"2D, slices of {thickness:.2g} mm": header.text("acquisition_type") == "2D",
        f"slices of {thickness:.2g} mm": thickness > _THICK_MM,
        f"covers {extent.min():.0f} mm, not a head": extent.min() < _HEAD_MM,
        "echo-planar": "EP" in scanning,
        "angiography": header.text("angiography") == "Y",
        f"an echo time of {echo:.3g} ms": echo > _LONGEST_ECHO_MS[is_t1],
        f"an inversion time of {inversion:.4g} ms": inversion > _LONGEST_INVERSION_MS and not is_t1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _problem_of(headers, slices, depths, gaps):
    """Returns why a series cannot be converted to one volume; empty if it can."""
    cut = sum(header.is_cut for header in headers)
    echoes, repeats = len({echo for _, _, echo in slices}), max(Counter(depths.tolist()).values(), default=1)
    spacing = np.median(gaps) if len(gaps) else 1
    missing = int(np.round(gaps / spacing - 1).sum()) if len(gaps) else 0
    uneven = bool(len(gaps) and np.abs(gaps / spacing - np.round(gaps / spacing)).max() > _UNEVEN)
    reasons = {
        f"{cut} of its {len(slices)} slices cut off; copy them again": cut,
        "slices of two orientations in one series": len(_orientations(slices)) > 1,
        f"{echoes} echoes in one series; take their mean, or convert one of them: dcm2niix": echoes > 1,
        f"{repeats} volumes in one series, no single scan": repeats > 1,
        "slices at uneven distances; copy the series again": uneven,
        f"{missing} of {len(gaps) + 1 + missing} slices missing; copy the series again": missing > 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _note_of(headers):
    """Returns a doubt about the first slices of a series: whether their numbers begin late, but not behind those of
    another series."""
    found = sorted(int((header.numbers("instance_number") or [0])[0]) for header in headers)
    begins_late = 1 < found[0] <= len(found) == found[-1] - found[0] + 1
    return f"slices 1 to {found[0] - 1} may be missing at one end, by their numbers" if begins_late else ""


def hashed(text):
    """Returns a hash that stands for a UID, or for a name."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]

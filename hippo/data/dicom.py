"""Reads the few values of a DICOM header that say what a series is (DICOM PS3.5 and PS3.10, dicom.nema.org).

Values that name a person are not read: no name, id, date, institution, device or comment.
"""

import struct
from typing import NamedTuple

TAGS = {  # names of the values that are read, each with its tag
    "sop_class": 0x00080016,
    "instance_uid": 0x00080018,
    "image_type": 0x00080008,
    "modality": 0x00080060,
    "description": 0x0008103E,
    "protocol": 0x00181030,
    "sequence_name": 0x00180024,
    "contrast_agent": 0x00180010,
    "scanning_sequence": 0x00180020,
    "acquisition_type": 0x00180023,
    "angiography": 0x00180025,
    "thickness_mm": 0x00180050,
    "echo_time_ms": 0x00180081,
    "inversion_time_ms": 0x00180082,
    "echo_number": 0x00180086,
    "spacing_between_slices_mm": 0x00180088,
    "study_uid": 0x0020000D,
    "series_uid": 0x0020000E,
    "series_number": 0x00200011,
    "instance_number": 0x00200013,
    "position_mm": 0x00200032,
    "orientation": 0x00200037,
    "frames": 0x00280008,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "pixel_spacing_mm": 0x00280030,
}
_ENHANCED = {0x00189082: "echo_time_ms", 0x00189079: "inversion_time_ms"}  # other tags in files of many frames
_NAMES = {tag: name for name, tag in TAGS.items()} | _ENHANCED
OF_FRAMES = ("position_mm", "orientation", "echo_time_ms")  # all values of a file are kept
_BINARY = ("rows", "columns")  # unsigned 16-bit integers
_ITEM, _ENDS = 0xFFFEE000, (0xFFFEE00D, 0xFFFEE0DD)
_PIXELS, _SEQUENCES = 0x7FE00010, (0x52009229, 0x52009230)
_STARTS = (b"\2\0\0\0", *(bytes([8, 0, element, 0]) for element in (0, 1, 5, 8, 0x16)))  # of files without a preamble
_UNDEFINED = 0xFFFFFFFF
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_LONGEST = 1024  # bytes of a value
_MOST_ELEMENTS = 2_000_000
_DEEPEST = 30  # sequences in sequences


class Header(NamedTuple):
    """What is read of a file. values: {name in TAGS: text, its parts joined by backslashes}; frames: {name: texts of
    all frames, of a file with several}; is_cut: whether the file ends before its pixels do."""

    values: dict
    frames: dict
    is_cut: bool

    def text(self, name):
        """Returns a value in capitals; empty if it is missing."""
        return self.values.get(name, "").upper()

    def numbers(self, name):
        """Returns a value as a list of floats; empty if it is missing or no number."""
        return numbers(self.values.get(name, ""))

    @property
    def is_image(self):
        """Whether the file holds an image of a series, which a DICOMDIR or a report does not."""
        return bool(self.values.get("series_uid") and self.numbers("rows") and self.numbers("columns"))


def numbers(text):
    """Returns the floats in a text, joined by backslashes; empty if one is no finite number."""
    try:
        found = [float(part) for part in text.split("\\") if part.strip()]
    except ValueError:
        return []
    return found if all(abs(value) < 1e9 for value in found) else []


def read_header(file, size):
    """Returns the Header of an open binary file of `size` bytes, at its beginning, or None if it is no DICOM file.

    The content counts and not the name; the preamble may be missing. Reads no pixels.
    """
    start = file.read(132)
    has_preamble = start[128:] == b"DICM"
    if not has_preamble and start[:4] not in _STARTS:
        return None
    file.seek(132 if has_preamble else 0)
    values, frames = {}, {name: [] for name in OF_FRAMES}
    try:
        is_cut = _walk(_Elements(file), size, values, frames)
    except EOFError:
        is_cut = True
    except ValueError:
        values, is_cut = {}, True
    if not has_preamble and not values.get("sop_class", "").startswith("1.2.840.10008."):
        return None
    return Header(values, frames, is_cut)


class _Elements:
    """The elements of an open file, one after the other. Explicit VR, and big endian, are seen by the first element
    behind the file's meta information."""

    def __init__(self, file):
        self.file, self.position = file, file.tell()
        self.order, self.is_explicit, self.in_meta = "<", True, True

    def read(self, count):
        content = self.file.read(count)
        if len(content) < count:
            raise EOFError
        self.position += count
        return content

    def skip(self, count):
        self.file.seek(count, 1)
        self.position += count

    def next(self):
        """Returns (tag, VR, length in bytes) of the next element. Raises ValueError if it cannot be one."""
        start = self.read(8)
        if self.in_meta and start[:2] != b"\2\0":
            self.in_meta, self.order = False, ">" if start[:2] == b"\0\x08" else "<"
            self.is_explicit = start[4:6].isalpha() and start[4:6].isupper()
        group, element = struct.unpack(f"{self.order}HH", start[:4])
        kind = start[4:6]
        if group == 0xFFFE or not self.is_explicit and not self.in_meta:
            return group << 16 | element, b"", struct.unpack(f"{self.order}I", start[4:])[0]
        if not (kind.isalpha() and kind.isupper()):
            raise ValueError("no VR")
        if kind in _LONG:
            return group << 16 | element, kind, struct.unpack(f"{self.order}I", self.read(4))[0]
        return group << 16 | element, kind, struct.unpack(f"{self.order}H", start[6:])[0]


def _walk(elements, size, values, frames):
    """Fills values and frames, see Header. Returns whether the file ends before its pixels do. Raises EOFError if it
    ends in the header, and ValueError if it is broken.

    Sequences are walked into. What stands outside of them counts more than what stands inside.
    """
    ends = []  # of the sequences and items around an element, None if not known, and whether VRs are explicit there
    for _ in range(_MOST_ELEMENTS):
        while ends and ends[-1][0] is not None and elements.position >= ends[-1][0]:
            elements.is_explicit = ends.pop()[1]
        if not ends and elements.position == size:
            return "rows" in values
        tag, kind, length = elements.next()
        if tag in _ENDS:
            elements.is_explicit = ends.pop()[1] if ends else elements.is_explicit
        elif tag == _PIXELS and not ends:
            return length != _UNDEFINED and elements.position + length > size
        elif tag == _ITEM or kind == b"SQ" or length == _UNDEFINED or tag in _SEQUENCES:
            ends.append((None if length == _UNDEFINED else elements.position + length, elements.is_explicit))
            elements.is_explicit &= kind != b"UN"  # whose content has none
            if len(ends) > _DEEPEST:
                raise ValueError("too deep")
        elif elements.position + length > size:
            raise EOFError
        elif tag in _NAMES and length <= _LONGEST:
            _keep(_NAMES[tag], elements.read(length), elements.order, bool(ends), values, frames)
        else:
            elements.skip(length)
    raise ValueError("too many elements")


def _keep(name, content, order, is_nested, values, frames):
    if name in _BINARY and len(content) == 2:
        text = str(struct.unpack(f"{order}H", content)[0])
    else:
        text = content.decode("latin-1").strip("\0 ")
    if is_nested and name in frames:
        frames[name].append(text)
    if not is_nested or name not in values:
        values[name] = text

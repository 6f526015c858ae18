"""Brings a series out of its folder or .zip file: dcm2niix converts DICOM files to a NIfTI file."""

import importlib.util
import shutil
import subprocess
import time
from pathlib import Path

from hippo.data.cases import case_id
from hippo.errors import require
from hippo.study.archives import copy_out

_SECONDS, _MOST_BYTES = 600, 2**32  # for one series, and of what dcm2niix writes of it
_POLL_SECONDS = 0.05
_OPTIONS = ["-g", "i", "-b", "n", "-z", "n", "-w", "1", "-f", "series"]  # no settings of the user, no sidecar, no gzip
_REFUSED = {  # warnings of dcm2niix, and what they say about a volume
    "Interslice distance varies": "slices are missing or at uneven distances",
    "orientation varies": "slices of several orientations in one series",
    "echo varies": "several echoes in one series",
    "Unable to determine slice direction": "the direction of its slices is not known, and so neither are its sides",
    "appear to be a single slice": "all of its slices lie at one place",
    "not mirrored": "its place in space is not known, and so neither are its sides",
    "QUADRUPED": "an animal, by its header",
    "File not large enough": "a slice is cut off",
    "Unsupported transfer syntax": "compressed in a way that dcm2niix does not read",
}
_HARMLESS = ("Patient Position", "Unable to determine manufacturer", "exported as classic", "Instance", "protocol name")


def fetch(series, folder, warn=None):
    """Returns the path of the scan of a Series, in a folder of work. Raises UserError if there is no single one, and if
    dcm2niix is missing, ends with an error, or takes too long or too much room. warn: called with a text if dcm2niix
    warns of something else, which is not quoted, for it may quote the header."""
    require(not series.problem, series.problem)
    if series.scan:
        endings = {name: Path(name).name[len(case_id(name)) :] for name in series.files}
        return copy_out(series.source, {name: f"scan{end}" for name, end in endings.items()}, folder / "scan")[0]
    program = find_dcm2niix()
    names = {name: f"{number:05d}.dcm" for number, name in enumerate(series.files)}
    for path in copy_out(series.source, names, folder / "slices"):
        _add_preamble(path)
    (folder / "scan").mkdir()
    code, text = _run([program, *_OPTIONS, "-o", "scan", "slices"], folder)
    shutil.rmtree(folder / "slices", ignore_errors=True)
    for words, meaning in _REFUSED.items():
        require(words not in text, f"{meaning}, says dcm2niix; copy or export the series again")
    scans = sorted((folder / "scan").glob("*.nii"))
    require(code == 0 and scans, f"dcm2niix could not convert it (code {code}); copy or export the series again")
    several = f"dcm2niix makes {len(scans)} volumes of this series; convert it by hand, and give the right one"
    require(len(scans) == 1, several)
    if warn and has_other_warnings(text):
        warn(f"{series.label}: dcm2niix has a warning; see it with: dcm2niix -o FOLDER {series.source}")
    return scans[0]


def has_other_warnings(text):
    """Whether dcm2niix, which printed this text, warns of anything that is neither harmless nor refused."""
    warnings = [line for line in text.splitlines() if line.startswith("Warning")]
    return any(not any(words in line for words in _HARMLESS) for line in warnings)


def _add_preamble(path):
    """Adds the preamble of a DICOM file that begins with its meta information, which dcm2niix does not read."""
    with open(path, "rb") as file:
        if file.read(4) != b"\2\0\0\0":
            return
    path.write_bytes(bytes(128) + b"DICM" + path.read_bytes())


def find_dcm2niix():
    """Returns the path of the program dcm2niix: of its package, else of the machine. Raises UserError without it."""
    spec = importlib.util.find_spec("dcm2niix")
    own = spec and shutil.which(str(Path(spec.origin).with_name("dcm2niix")))
    program = own or shutil.which("dcm2niix")
    require(program, "dcm2niix, which converts DICOM files, is missing; pip install -r requirements-dicom.txt")
    return program


def _run(command, folder):
    """Runs a command until it ends. Returns (exit code, what it printed). Ends it, and raises UserError, if it takes too
    long, or writes too much into the folder."""
    end, log = time.monotonic() + _SECONDS, folder / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder)
        try:
            while process.poll() is None:
                require(time.monotonic() < end, f"dcm2niix took more than {_SECONDS} s")
                written = sum(path.stat().st_size for path in folder.glob("scan/*")) + log.stat().st_size
                require(written < _MOST_BYTES, f"dcm2niix wrote more than {_MOST_BYTES / 1e9:.1f} GB")
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")[-1_000_000:]

"""BIDS derivatives: file names and metadata files (bids-specification.readthedocs.io, derivatives).

A label map is sub-01/anat/sub-01_space-orig_seg-hippocampus_dseg.nii.gz, on the grid of its T1-weighted scan.
"""

import argparse
import contextlib
import os
from pathlib import Path
from urllib.parse import quote

from hippo import __version__
from hippo.data.cases import case_id
from hippo.errors import UserError
from hippo.files import load_json, remove_half_written, save_json, save_text
from hippo.heads.anatomy import DESCRIPTIONS
from hippo.study.inputs import DESCRIPTION

_LABELS = ("participant_label", "session_label")  # options of a BIDS App that take several words
_LAST = ("res", "den", "label", "desc")  # entities that follow seg- in a file name
_SEGMENTATION = "seg-hippocampus"
_SCANNER = ("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "DeviceSerialNumber")
_SUBCORTICAL = 9  # the BIDS index of subcortical grey matter
KINDS = ("dseg", "probseg", "uncertainty")  # kinds of results, each with a sidecar
FILES = (
    DESCRIPTION,
    f"{_SEGMENTATION}_dseg.tsv",
    f"{_SEGMENTATION}_dseg.json",
    ".bidsignore",
    "README",
)  # files that describe all scans
_WORDS = {
    "dseg": "Anterior and posterior hippocampus of both sides, as a network sees them",
    "probseg": "Probabilities of the labels of the segmentation, in their order, 0 to 1",
    "single_label": "Hippocampus of both sides, as a network sees it",
    "uncertainty": "Predictive entropy and mutual information of samples by MC dropout, 0 to 1",
}
# files of this project that are not part of the BIDS standard
_IGNORED = (
    "volumes.tsv",
    "volumes.json",
    "change.tsv",
    "change.json",
    "profiles.tsv",
    "profiles.json",
    "*_profile.tsv",
    "adjustment.json",
    "report.html",
    "figures",
    "figures/**",
    "*_uncertainty.*",
    ".hippo/",
)


def output_name(name, kind):
    """Returns the path of a result relative to the root of the derivatives, without its extension. name: of the scan,
    see inputs.Item; kind: dseg, probseg or uncertainty."""
    folder, _, stem = name.rpartition("/")
    entities = stem.removesuffix("_T1w").split("_")
    last = [e for e in entities if e.split("-")[0] in _LAST]
    first = [e for e in entities if e not in last]
    if not any(e.startswith("space-") for e in first):
        first.append("space-orig")
    return "/".join((*filter(None, [folder]), "_".join((*first, _SEGMENTATION, *last, kind))))


def refuse_equal_names(items):
    """The Items; those whose results would have the names of another one's get a problem."""
    first, result = {}, []
    for item in items:
        other = first.setdefault(output_name(item.name, "dseg"), item)
        text = f"its results would have the names of those of {other.path.name}; rename one of them"
        result.append(item if other is item or item.problem else item._replace(problem=text))
    return result


def save_sidecar(out_dir, item, kind, single_label=False):
    """Writes the JSON sidecar of a result and returns its path. single_label: the labels are FreeSurfer's."""
    uri = f"bids:raw:{item.name}{item.path.name.removeprefix(item.name.rpartition('/')[2])}"
    words = _WORDS["single_label" if single_label and kind == "dseg" else kind]
    content = {"Description": words, "Sources": [uri], "SpatialReference": uri}
    if kind == "dseg":
        content["Manual"] = False
    elif kind == "probseg":
        content["LabelMap"] = [abbreviation for _, abbreviation, _ in DESCRIPTIONS[False].values()]
    path = Path(out_dir) / f"{output_name(item.name, kind)}.json"
    remove_half_written(path)
    save_json(path, content)
    return path


def scanner_of(path):
    """Returns the scanner of a scan of a BIDS data set as text, from the .json files that apply to it (the inheritance
    principle: those beside it and in the folders above, whose names have no other entities). Empty if none says."""
    parts, facts = {*case_id(path).split("_")}, {}
    root = next((folder for folder in path.parents if (folder / DESCRIPTION).is_file()), path.parent)
    folders = [folder for folder in path.parents if folder == root or root in folder.parents]
    for sidecar in [sidecar for folder in reversed(folders) for sidecar in sorted(folder.glob("*T1w.json"))]:
        if parts >= {*sidecar.stem.split("_")}:
            with contextlib.suppress(UserError):
                content = load_json(sidecar, "")
                facts |= content if isinstance(content, dict) else {}
    return ", ".join(str(facts[name]) for name in _SCANNER if facts.get(name))


def save_description(out_dir, source, models, commit, single_label=False):
    """Writes the files that describe the derivatives of the data set `source`: dataset_description.json, the table of
    labels, and the list of files that a validator skips. models: {name of weights: SHA-256}; single_label: the
    labels are FreeSurfer's."""
    out_dir = Path(out_dir)
    try:
        raw = load_json(Path(source) / DESCRIPTION, "")
    except UserError:
        raw = {}
    raw = raw if isinstance(raw, dict) else {}
    origin = {"DOI": raw["DatasetDOI"]} if raw.get("DatasetDOI") else {"URL": Path(source).resolve().as_uri()}
    generated = {"Name": "hippo", "Version": __version__, "Description": f"commit {commit}"}
    try:
        link = quote(Path(os.path.relpath(source, out_dir)).as_posix())
    except ValueError:  # Windows: on different drives
        link = Path(source).resolve().as_uri()
    content = {
        "Name": f"Anterior and posterior hippocampus: {raw.get('Name', Path(source).resolve().name)}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "Authors": raw.get("Authors", []),
        "License": raw.get("License", "that of the scans"),
        "GeneratedBy": [generated | {"Commit": commit, "Models": models}],
        "SourceDatasets": [origin],
        "DatasetLinks": {"raw": link},
    }
    save_json(out_dir / DESCRIPTION, content)
    rows = [("index", "name", "abbreviation", "color", "mapping")]
    rows += [(index, *words, _SUBCORTICAL) for index, words in DESCRIPTIONS[single_label].items()]
    text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    save_text(out_dir / f"{_SEGMENTATION}_dseg.tsv", text)
    save_json(
        out_dir / f"{_SEGMENTATION}_dseg.json", {"Description": _WORDS["single_label" if single_label else "dseg"]}
    )
    save_text(out_dir / ".bidsignore", "".join(f"{name}\n" for name in _IGNORED))
    save_text(out_dir / "README", _README)


def from_app(argv):
    """Returns the arguments of predict.py for those of a BIDS App (Gorgolewski et al. 2017): BIDS_DIR OUT_DIR and
    participant (segment) or group (join what shards have written), then options. Returns others as they are."""
    if argv[2:3] == ["group"]:
        return ["--collect=True", f"--out_dir={argv[1]}", *argv[3:]]
    if argv[2:3] != ["participant"]:
        return argv
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in _LABELS:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="+", default=[])
    known, others = parser.parse_known_args(argv[3:])
    labels = [f"--{name}={','.join(getattr(known, name))}" for name in _LABELS if getattr(known, name)]
    return [argv[0], f"--out_dir={argv[1]}", *labels, *others]


_README = """Volumes and label maps of the anterior and posterior hippocampus, found by networks. Not for clinical use.

volumes.tsv has a row for each scan and side, change.tsv (where people have several sessions) one for each side and later
visit; the .json beside a table says what its columns are. report.html is the page to check the results by: look at each
before you use a number. Records of what is done are in .hippo/.
"""

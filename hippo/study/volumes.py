"""The table of a study: volumes of each scan and side, and statistics over the whole study."""

import csv
from pathlib import Path
from typing import NamedTuple

from hippo.errors import UserError, require
from hippo.files import atomic, load_json, save_json
from hippo.heads.flags import OF_ETIV
from hippo.heads.result import PARTS, check_etiv, readable

import numpy as np


class Column(NamedTuple):
    """What the .json file beside a table says of a column. units: of the number, 1 for a ratio; source: file, network or
    paper that it comes from."""

    description: str
    units: str = ""
    method: str = ""
    source: str = ""


_COUNTED = "Voxels of the labels times the volume of a voxel by the header's affine, on the scan's own grid"
_MAP = "The label map of the scan"
COLUMNS = {  # columns of the table
    "participant_id": Column("Participant", source="Folder of the data set"),
    "session_id": Column("Session", source="Folder of the data set"),
    "scan": Column("File of the scan"),
    "side": Column("left or right; of a crop as found, or as told", source="Header of the scan"),
    "anterior_mm3": Column("Volume of the anterior part: the head", "mm3", _COUNTED, _MAP),
    "posterior_mm3": Column("Volume of the posterior part: body and tail", "mm3", _COUNTED, _MAP),
    "total_mm3": Column("Volume of the whole hippocampus", "mm3", "Sum of both parts", _MAP),
    "etiv_mm3": Column(
        "Estimated total intracranial volume",
        "mm3",
        "Sum of the probability of the intracranial space on voxels of 4 mm, corrected by a power fitted to painted heads",
        "The locating network, or the option --etiv",
    ),
    "quality": Column(
        "Dice to expect with a hand-drawn label, 0 to 1, mean of both parts",
        "1",
        "A rising function of the mean of the models' confidence and the agreement of the turned views",
        "pretrained/quality.json",
    ),
    "flags": Column("What is doubtful, joined by semicolons; failed: why there is no result", source="See report.html"),
    "seconds": Column("Time to read and to segment the scan", "s"),
    "model": Column("Files of the weights", source="dataset_description.json has their checksums"),
    "etiv_source": Column("Where etiv_mm3 comes from: network, or given (the option --etiv)"),
    "voxel_mm": Column("Size of a voxel from left to right, back to front, and bottom to top", "mm", source="Header"),
}
SPREADS = {
    f"{part}_sd_mm3": Column(f"Spread of {part}_mm3", "mm3", "Standard deviation over samples by MC dropout", "SAMPLER")
    for part in PARTS
}
STATISTICS = {
    "asymmetry": Column("Difference of the two sides", "1", "(left - right) / mean of both, of total_mm3"),
    **{
        f"{part}_adjusted_mm3": Column(
            f"{part}_mm3 adjusted for intracranial volume",
            "mm3",
            f"{part}_mm3 less slope x (etiv_mm3 - its mean), the residual method (Jack et al. 1989)",
            "Slope and mean of adjustment.json",
        )
        for part in PARTS
    },
}
OF_BIDS = {  # columns of a BIDS data set, behind all others
    "scanner": Column("Manufacturer, model, field strength in T and serial number", source="Sidecars of the scan"),
    "chosen": Column(
        "Where a person has several T1-weighted scans of a session: whether change.tsv takes this one, and why",
        method="The scan with the highest quality of its worse side, or the one named by --prefer",
    ),
}
FEWEST = 10  # minimum number of heads for a fit
_DOUBTS = {"low_quality", "in_fluid", "implausible_volume", "asymmetric", *OF_ETIV}


def empty_row(path):
    """Returns a row of COLUMNS, without those of BIDS, that holds only the path of the scan."""
    return dict.fromkeys(list(COLUMNS)[2:], "") | {"scan": readable(path)}


def fit_adjustment(records):
    """Fits the residual method (Jack et al. 1989; Opfer et al. 2022). Returns {"n", "etiv_source", "mean_etiv_mm3",
    "slopes": {side: {part: mm3 per mm3}}, "standard_errors": the same of the slopes} of least-squares lines of each
    volume on eTIV. Uses the first head of each participant that has no doubts on either side, and of these the more
    frequent source of eTIV, since sources differ in scale. Returns {} for fewer than FEWEST heads, or if all have the
    same eTIV."""
    heads = {}
    for record in records:
        rows = {row["side"]: row for row in record["rows"]}
        sure = all(
            row["total_mm3"] and row["etiv_mm3"] and not _DOUBTS & {*row["flags"].split(";")} for row in rows.values()
        )
        if sure and rows.keys() == {"left", "right"}:
            heads.setdefault(record["participant_id"] or record["name"], rows)
    sources = [rows["left"].get("etiv_source", "") for rows in heads.values()]
    source = max(sources, key=sources.count, default="")
    heads = {name: rows for (name, rows), other in zip(heads.items(), sources) if other == source}
    etiv = np.array([float(rows["left"]["etiv_mm3"]) for rows in heads.values()])
    if len(heads) < FEWEST or np.ptp(etiv) == 0:
        return {}
    centred, slopes, errors = etiv - etiv.mean(), {}, {}
    parts = [
        part for part in PARTS if all(rows["left"][f"{part}_mm3"] for rows in heads.values())
    ]  # only the total if the models do not separate the parts
    for side in ("left", "right"):
        volumes = {part: np.array([float(rows[side][f"{part}_mm3"]) for rows in heads.values()]) for part in parts}
        slopes[side] = {part: float(centred @ values / (centred @ centred)) for part, values in volumes.items()}
        errors[side] = {part: _error_of_slope(centred, values, slopes[side][part]) for part, values in volumes.items()}
    fit = {"n": len(heads), "etiv_source": source, "mean_etiv_mm3": float(etiv.mean())}
    return fit | {"slopes": slopes, "standard_errors": errors}


def _error_of_slope(centred, values, slope):
    """Returns the standard error of a least-squares slope. centred: abscissae less their mean."""
    residuals = values - values.mean() - slope * centred
    return float(np.sqrt(residuals @ residuals / (len(values) - 2) / (centred @ centred)))


def load_adjustment(path):
    """Loads the adjustment.json of another study. Raises UserError if the file is not one."""
    content = load_json(path, "python predict.py of a study, whose OUT_DIR/adjustment.json it is")
    try:
        (
            float(content["mean_etiv_mm3"]),
            [
                float(content["slopes"][side][p])
                for side in ("left", "right")
                for p in {"total", *content["slopes"][side]}
            ],
        )
    except (KeyError, TypeError, ValueError):
        expected = f"{path}: expected an adjustment.json that predict.py wrote, of another study for instance"
        raise UserError(expected) from None
    return content


def load_etivs(path):
    """Loads {scan: intracranial volume in mm3} from a CSV with the columns scan, etiv_mm3. Raises UserError that names
    the row and its error."""
    option = f"--etiv={path}"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = [(reader.line_num, row) for row in reader], reader.fieldnames or []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{option}: expected a CSV with the columns scan, etiv_mm3 ({error})") from None
    hint = "; it has semicolons: save it with commas" if ";" in "".join(columns) else ""
    expected = f"{option}: expected the columns scan, etiv_mm3, got {', '.join(columns)!r}{hint}"
    require({"scan", "etiv_mm3"} <= {*columns}, expected)
    values = {}
    for number, row in rows:
        where = f"{option}, line {number} ({row['scan']})"
        require(None not in row, f"{where}: more cells than the first line has; write numbers without commas")
        scan, value = Path(row["scan"] or "").as_posix(), etiv_of(row["etiv_mm3"] or "", where)
        same = values.setdefault(scan, value) == value
        require(same, f"{option}: ['{scan}'] has several values; name each scan by its path")
    return values


def etiv_of(text, where):
    """Parses an intracranial volume in mm3. Raises UserError, whose message begins with `where`, for invalid text."""
    require(text.strip(), f"{where}: the cell etiv_mm3 is empty; give a number of mm3, or leave the scan out")
    try:
        value = float(text)
    except ValueError:
        separators = any(mark in text for mark in ",.' ") and any(letter.isdigit() for letter in text)
        hint = ", with neither commas nor dots between thousands" if separators else ""
        raise UserError(f"{where}: {text!r} is no etiv_mm3; expected a number of mm3 such as 1480000{hint}") from None
    return check_etiv(value, where)


def add_statistics(records, adjustment):
    """Returns the rows of records with STATISTICS added; values that cannot be computed are empty, and so are adjusted
    volumes where eTIV has another source than in the adjustment, see fit_adjustment."""
    rows = []
    for record in records:
        totals = {row["side"]: float(row["total_mm3"]) for row in record["rows"] if row["total_mm3"]}
        asymmetry = ""
        if totals.keys() == {"left", "right"}:
            asymmetry = f"{2 * (totals['left'] - totals['right']) / sum(totals.values()):.4f}"
        for row in record["rows"]:
            row = row | dict.fromkeys(STATISTICS, "") | {"asymmetry": asymmetry}
            known = row["total_mm3"] and row["etiv_mm3"] and not {*OF_ETIV} & {*row["flags"].split(";")}
            source = row.get("etiv_source", "")
            if adjustment and known and source == adjustment.get("etiv_source", source):
                excess = float(row["etiv_mm3"]) - adjustment["mean_etiv_mm3"]
                slopes = adjustment["slopes"][row["side"]].items()
                for part, slope in ((part, slope) for part, slope in slopes if row[f"{part}_mm3"]):
                    row[f"{part}_adjusted_mm3"] = f"{float(row[f'{part}_mm3']) - slope * excess:.1f}"
            rows.append({name: readable(record[name]) for name in ("participant_id", "session_id")} | row)
    return rows


def save_table(out_dir, rows, spreads, bids):
    """Writes volumes.csv or, for a BIDS data set, volumes.tsv and volumes.json."""
    columns = {name: column for name, column in COLUMNS.items() if bids or not name.endswith("_id")}
    columns |= STATISTICS | (SPREADS if spreads else {}) | (OF_BIDS if bids else {})
    save_rows(Path(out_dir) / f"volumes.{'tsv' if bids else 'csv'}", rows, columns)


def save_rows(path, rows, columns):
    """Writes rows, {column: text}, as a table. columns: {name: Column}. A .tsv has n/a for missing values and a .json
    beside it that describes the columns, as in BIDS."""
    is_tsv = path.suffix == ".tsv"
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        how = {"dialect": "excel-tab", "lineterminator": "\n"} if is_tsv else {}
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", **how)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: row.get(name) or ("n/a" if is_tsv else "") for name in columns})
    if is_tsv:
        save_json(path.with_suffix(".json"), {name: _described(column) for name, column in columns.items()})


def _described(column):
    """Returns what a .json file says of a Column."""
    return {name.capitalize(): text for name, text in column._asdict().items() if text}

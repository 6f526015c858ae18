"""The table of a study: volumes of each scan and side, and statistics over the whole study."""

import csv
from pathlib import Path

from hippo.errors import UserError, require
from hippo.files import atomic, load_json, save_json
from hippo.heads.flags import OF_ETIV
from hippo.heads.result import PARTS, readable

import numpy as np

COLUMNS = {  # columns of the table, each with its meaning
    "participant_id": "Participant, of a BIDS data set",
    "session_id": "Session, of a BIDS data set",
    "scan": "File of the scan",
    "side": "left or right; of a crop as found, or as told",
    "anterior_mm3": "Volume of the anterior part in mm3, counted on the scan's own grid",
    "posterior_mm3": "Volume of the posterior part in mm3: body and tail",
    "total_mm3": "Sum of both parts in mm3",
    "etiv_mm3": "Estimated total intracranial volume in mm3: the locating network's, or the one that was given",
    "quality": "Dice to expect, 0 to 1, mean of both parts",
    "flags": "What is doubtful, joined by semicolons; failed: why there is no result",
    "seconds": "Time of the scan in s",
    "model": "Files of the weights",
}
SPREADS = {
    f"{part}_sd_mm3": f"Standard deviation in mm3 of the {part} volume over samples by MC dropout" for part in PARTS
}
STATISTICS = {
    "asymmetry": "(left - right) / mean of both, of the total volumes",
    **{
        f"{part}_adjusted_mm3": f"{part}_mm3 less slope x (etiv_mm3 - its mean), slope and mean of adjustment.json"
        for part in PARTS
    },
}
FEWEST = 10  # minimum number of heads for a fit
_DOUBTS = {"low_quality", "in_fluid", "implausible_volume", "asymmetric", *OF_ETIV}


def empty_row(path):
    """Returns a row of COLUMNS, without those of BIDS, that holds only the path of the scan."""
    return dict.fromkeys(list(COLUMNS)[2:], "") | {"scan": readable(path)}


def fit_adjustment(records):
    """Fits the residual method (Jack et al. 1989; Opfer et al. 2022). Returns {"n", "mean_etiv_mm3", "slopes": {side:
    {part: mm3 per mm3}}} of least-squares lines of each volume on eTIV. Uses the first head of each participant that
    has no doubts on either side. Returns {} for fewer than FEWEST heads, or if all have the same eTIV."""
    heads = {}
    for record in records:
        rows = {row["side"]: row for row in record["rows"]}
        sure = all(
            row["total_mm3"] and row["etiv_mm3"] and not _DOUBTS & {*row["flags"].split(";")} for row in rows.values()
        )
        if sure and rows.keys() == {"left", "right"}:
            heads.setdefault(record["participant_id"] or record["name"], rows)
    etiv = np.array([float(rows["left"]["etiv_mm3"]) for rows in heads.values()])
    if len(heads) < FEWEST or np.ptp(etiv) == 0:
        return {}
    centred, slopes = etiv - etiv.mean(), {}
    parts = [
        part for part in PARTS if all(rows["left"][f"{part}_mm3"] for rows in heads.values())
    ]  # only the total if the models do not separate the parts
    for side in ("left", "right"):
        volumes = {part: np.array([float(rows[side][f"{part}_mm3"]) for rows in heads.values()]) for part in parts}
        slopes[side] = {part: float(centred @ values / (centred @ centred)) for part, values in volumes.items()}
    return {"n": len(heads), "mean_etiv_mm3": float(etiv.mean()), "slopes": slopes}


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
    require(1e5 <= value <= 1e7, f"{where}: {value:g} is no intracranial volume in mm3; expected about 1500000")
    return value


def add_statistics(records, adjustment):
    """Returns the rows of records with STATISTICS added; values that cannot be computed are empty. adjustment: see
    fit_adjustment."""
    rows = []
    for record in records:
        totals = {row["side"]: float(row["total_mm3"]) for row in record["rows"] if row["total_mm3"]}
        asymmetry = ""
        if totals.keys() == {"left", "right"}:
            asymmetry = f"{2 * (totals['left'] - totals['right']) / sum(totals.values()):.4f}"
        for row in record["rows"]:
            row = row | dict.fromkeys(STATISTICS, "") | {"asymmetry": asymmetry}
            known = row["total_mm3"] and row["etiv_mm3"] and not {*OF_ETIV} & {*row["flags"].split(";")}
            if adjustment and known:
                excess = float(row["etiv_mm3"]) - adjustment["mean_etiv_mm3"]
                slopes = adjustment["slopes"][row["side"]].items()
                for part, slope in ((part, slope) for part, slope in slopes if row[f"{part}_mm3"]):
                    row[f"{part}_adjusted_mm3"] = f"{float(row[f'{part}_mm3']) - slope * excess:.1f}"
            rows.append({name: readable(record[name]) for name in ("participant_id", "session_id")} | row)
    return rows


def save_table(out_dir, rows, spreads, bids):
    """Writes volumes.csv or, for a BIDS data set, volumes.tsv (with n/a for missing values) and volumes.json. Returns
    the path of the table."""
    columns = {name: text for name, text in COLUMNS.items() if bids or not name.endswith("_id")}
    columns |= STATISTICS | (SPREADS if spreads else {})
    path = Path(out_dir) / f"volumes.{'tsv' if bids else 'csv'}"
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        how = {"dialect": "excel-tab", "lineterminator": "\n"} if bids else {}
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", **how)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: row.get(name) or ("n/a" if bids else "") for name in columns})
    if bids:
        save_json(path.with_suffix(".json"), {name: _described(name, text) for name, text in columns.items()})
    return path


def _described(name, text):
    """Returns the description of a column for volumes.json."""
    return {"Description": text} | (
        {"Units": "mm3"} if name.endswith("_mm3") else {"Units": "s"} if name == "seconds" else {}
    )

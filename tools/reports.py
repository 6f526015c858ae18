"""Runs predict.py on inputs that failed after public reports, and prints what each gives now.

    python -m tools.reports --reports=../shared/reports --head=../shared/heads/sub-01/anat/sub-01_T1w.nii.gz

REPORTS holds the small inputs; those that are made from a HEAD are written into a temporary folder by its make_large.py.
About two minutes on two cores. Writes nothing else than the table on the screen.
"""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hippo.errors import require
from hippo.files import ROOT
from hippo.options import configure, run_script

REPORTS = "../shared/reports"  # folder of the small inputs
HEAD = ""  # a T1-weighted head without its skull, for the larger inputs; empty: none of them
ONLY = ""  # a word in the name of the inputs to run; empty: all

# what is run: (name, arguments of predict.py, variables of the environment); {r}: REPORTS, {l}: the larger inputs
_RUNS = [
    ("folder", ["{r}/folder"], {}),
    ("bids", ["{r}/bids"], {}),
    *((f"quaternion/{name}", [f"{{r}}/quaternion/{name}"], {}) for name in ("qform_only.nii", "sform_valid.nii")),
    ("pixdim", ["{r}/pixdim/crop.nii"], {}),
    *(
        (f"names/{name}", [f"{{r}}/names/{name}"], {})
        for name in ("CAPITALS.NII.GZ", "gzipped.nii", "in_metres.nii.gz", "in_microns.nii.gz", "not_gzipped.nii.gz")
    ),
    *(
        (f"labelmap/{name}", [f"{{r}}/labelmap/{name}.nii.gz"], {})
        for name in ("slices_doubled", "slices_doubled_one_off")
    ),
    ("fsync", ["{r}/folder/a.nii.gz"], {"PYTHONPATH": "{r}/fsync"}),
    *(
        (name, ["{r}/folder/a.nii.gz", f"--etiv={{r}}/{name}"], {})
        for name in ("etiv_de.csv", "etiv_de2.csv", "etiv_gap.csv")
    ),
    ("MPLBACKEND", ["{r}/folder/a.nii.gz"], {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}),
    ("LOCAL_RANK=", ["{r}/folder/a.nii.gz"], {"LOCAL_RANK": ""}),
    ("longname", ["{l}/longname"], {}),
    ("cp1252", ["{l}/患者/海馬.nii.gz"], {"PYTHONIOENCODING": "cp1252"}),
    *(
        (name, [f"{{l}}/{name}"], {})
        for name in (
            "sform_longer_than_pixdim.nii.gz",
            "ras_flag_0.mgz",
            "standardised_inside_the_mask.nii.gz",
            "slices_doubled.nii.gz",
            "seventeen_grey_levels.nii.gz",
            "one_bit_flipped.nii.gz",
            "a_brain_below_100_mm.nii.gz",
        )
    ),
]


def main():
    run(configure(globals()))


def run(cfg):
    """Runs all inputs of a configuration and prints a line for each row that they give."""
    reports = Path(cfg.reports).resolve()
    require(reports.is_dir(), f"--reports={cfg.reports}: no such folder")
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large"
        if cfg.head:
            subprocess.run([sys.executable, reports / "make_large.py", cfg.head, large], check=True)
        for number, (name, arguments, variables) in enumerate(_RUNS):
            is_large = "{l}" in arguments[0]
            if cfg.only in name and (cfg.head or not is_large):
                places = {"r": reports, "l": large}
                command = [text.format(**places) for text in arguments]
                environment = {key: value.format(**places) for key, value in variables.items()}
                print_result(name, command, environment, Path(folder) / f"out {number}")


def print_result(name, arguments, variables, out):
    """Runs predict.py and prints its exit code, its lines on stderr and "left out", and the rows of its table."""
    command = [sys.executable, ROOT / "predict.py", *arguments, f"--out_dir={out}", "--pictures=False"]
    result = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, cwd=ROOT)
    stdout, stderr = (text.decode("utf-8", "replace") for text in (result.stdout, result.stderr))
    print(f"{name}: exit code {result.returncode}")
    lines = [line for line in stderr.splitlines() if "predict:" not in line]
    lines += [line for line in stdout.splitlines() if line.startswith("left out")]
    for line in lines:
        print(f"    {line.replace(str(out.parent), '.')}")
    for table in out.glob("volumes.?sv"):
        with open(table, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ","):
                values = ", ".join(
                    f"{key} {row[key]}" for key in ("total_mm3", "etiv_mm3", "quality") if row[key] not in ("", "n/a")
                )
                print(
                    f"    {Path(row['scan']).name} {row['side']}: {values or 'no result'}; flags: {row['flags'] or 'none'}"
                )


if __name__ == "__main__":
    run_script(main)

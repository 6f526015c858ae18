"""predict.py as a BIDS App (Gorgolewski et al. 2017), for the container.

python -m tools.bids_app BIDS_DIR OUT_DIR participant [--participant_label 01 02] [options of predict.py]
python -m tools.bids_app BIDS_DIR OUT_DIR group       joins what shards have written
"""

import argparse
import sys

import predict
from hippo.options import run_script

_LISTS = ("participant_label", "session_label")


def main():
    sys.argv = [predict.__file__, *translate(sys.argv[1:])]
    predict.main()


def translate(argv):
    """The arguments of predict.py for those of a BIDS App."""
    parser = argparse.ArgumentParser(prog="bids_app", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bids_dir")
    parser.add_argument("output_dir")
    parser.add_argument("analysis_level", choices=("participant", "group"))
    for name in _LISTS:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="+", default=[])
    known, others = parser.parse_known_args(argv)
    if known.analysis_level == "group":
        return ["--collect=True", f"--out_dir={known.output_dir}", *others]
    labels = [f"--{name}={','.join(getattr(known, name))}" for name in _LISTS if getattr(known, name)]
    return [known.bids_dir, f"--out_dir={known.output_dir}", *labels, *others]


if __name__ == "__main__":
    run_script(main)

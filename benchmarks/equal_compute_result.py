"""Gathers what `equal_compute.sh` came to in one file: every run of its sweeps, and the three comparisons.

python benchmarks/equal_compute_result.py runs/equal_compute benchmarks/results/equal_compute.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from provenance import hardware, source

SWEEPS = ("tune/baseline", "tune/tst", "baseline", "tst")
COMPARISONS = ("equal_flops", "equal_data", "equal_loss")
_CASE = ("name", "settings", "status", "final_val_loss", "flops", "tokens", "seconds", "seed", "parameters")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that equal_compute.sh wrote")
    parser.add_argument("out", type=Path, help="result file (JSON)")
    parser.add_argument("--trained_at", help="commit of the runs, if it is not the present one")
    options = parser.parse_args()
    sweeps = {name: read(options.folder / name / "sweep.json")["cases"] for name in SWEEPS}
    document = source() | {
        "trained_at": options.trained_at,
        "hardware": hardware(threads=1),
        "sweeps": {name: [{key: case[key] for key in _CASE} for case in cases] for name, cases in sweeps.items()},
        "comparisons": {},
    }
    for name in COMPARISONS:
        comparison = read(options.folder / name / "comparison.json")
        # The runs are above.
        document["comparisons"][name] = {key: value for key, value in comparison.items() if key != "runs"}
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What it costs to ask: seconds from start to end of commands that do no training, and the libraries each imports.

Every command is a process of its own, in turn, after one round that is not counted and fills the file cache. The
dispatcher imports a command's module only when it is called, so that help and misspellings should pay for nothing heavy.

    python benchmarks/start_time.py --out benchmarks/results/start_time.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from provenance import hardware, source

HEAVY = ("torch", "lightning", "transformers", "litdata", "numpy", "matplotlib", "jsonargparse")
COMMANDS = (
    ["--help"],
    ["fitt"],  # misspelt
    ["compare", "--help"],
    ["prepare", "--help"],
    ["prepare", "no/such/folder", "--out", "OUT"],
    ["fit", "--config", "BAD"],
    ["fit", "--help"],
)


def start(words: list[str]) -> tuple[float, int, str]:
    """Runs ``tst``; seconds, exit code and the last line on stderr."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "tst_lightning", *words], capture_output=True, text=True)
    return time.perf_counter() - began, done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def imported(words: list[str]) -> list[str]:
    """The heavy libraries that a command imports, by Python's own account."""
    command = [sys.executable, "-X", "importtime", "-m", "tst_lightning", *words]
    lines = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()
    modules = {line.rsplit("|", 1)[-1].strip() for line in lines if line.startswith("import time:")}
    return [name for name in HEAVY if name in modules]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--rounds", type=int, default=5, help="counted starts of each command")
    options = parser.parse_args()
    facts = source() | {"hardware": hardware(threads=2)}
    with tempfile.TemporaryDirectory() as folder:
        bad = Path(folder) / "bad.yaml"
        bad.write_text("model: {confg: {}}\n")
        words = [[{"BAD": str(bad), "OUT": f"{folder}/out"}.get(word, word) for word in each] for each in COMMANDS]
        rounds = [[start(each) for each in words] for _ in range(options.rounds + 1)][1:]
        rows = []
        for index, command in enumerate(COMMANDS):
            seconds = [found[index][0] for found in rounds]
            row = {
                "command": " ".join(["tst", *command]),
                "seconds_median": round(statistics.median(seconds), 3),
                "seconds_min": round(min(seconds), 3),
                "seconds_max": round(max(seconds), 3),
                "exit_code": rounds[0][index][1],
                "says": rounds[0][index][2].replace(folder, "TMP"),
                "imports": imported(words[index]),
            }
            rows.append(row)
            print(f"{row['seconds_median']:7.2f} s  {row['command']:<36} {', '.join(row['imports']) or '-'}")
    if options.out:
        result = facts | {"rounds": options.rounds, "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

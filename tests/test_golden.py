"""Golden curves: 20 steps of superposition and 20 of recovery on a fixed text (this repository's licence).

They notice a change of the numbers that no identity test sees. Renew with ``make golden``, and say why in the commit.
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, tiny_config
from tst_lightning.__main__ import main

GOLDEN = Path(__file__).parent / "golden" / "curves.json"


def curves(folder: Path) -> dict[str, list[float]]:
    """Trains on the licence's paragraphs and returns training and validation losses in order."""
    corpus = folder / "licence.jsonl"
    paragraphs = (ROOT / "LICENSE").read_text().split("\n\n")
    corpus.write_text("".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs))
    shards = folder / "shards"
    assert main(["prepare", str(corpus), "--out", str(shards), "--vocab_size", "300", "--val_share", "0.2"]) == 0
    config = tiny_config(folder / "run", shards, trainer__max_steps=40, trainer__val_check_interval=10)
    config["model"]["config"]["init_args"]["vocab_size"] = 300
    path = folder / "golden.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(path)]) == 0
    with open(folder / "run" / "csv" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    keys = ("train/superposition/loss", "train/recovery/loss", "train/grad_norm", "val/loss", "val/bits_per_byte")
    return {key: [float(row[key]) for row in rows if row.get(key)] for key in keys}


def test_curves_are_golden(tmp_path: Path) -> None:
    found, golden = curves(tmp_path), json.loads(GOLDEN.read_text())
    assert {key: len(values) for key, values in found.items()} == {
        "train/superposition/loss": 20,
        "train/recovery/loss": 20,
        "train/grad_norm": 40,
        "val/loss": 4,
        "val/bits_per_byte": 4,
    }
    for key, values in golden.items():
        # Other processors round matrix products otherwise; a change of method moves far more than this.
        assert found[key] == pytest.approx(values, rel=2e-4), key


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(curves(Path(name)), indent=1) + "\n")
    print(f"renewed {GOLDEN}", file=sys.stderr)

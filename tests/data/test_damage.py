"""Damaged shards are found and named by a run itself, at the latest when it first touches them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_resume import assert_same_state, last, signal_at
from tst_lightning.shards.manifest import Manifest


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(shards, folder)
    return folder


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # the low byte of a token: the id stays within the vocabulary
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def foreign_id(path: Path) -> None:
    """An id beyond the vocabulary, in a chunk whose manifest says that all is well."""
    data = bytearray(path.read_bytes())
    data[-2:] = np.array([319 + 1], "<u2").tobytes()
    path.write_bytes(data)
    folder = path.parent.parent
    manifest = json.loads((folder / "manifest.json").read_text())
    split = manifest[path.parent.name]
    split["chunks"][0]["sha256"] = split["sha256"] = hashlib.sha256(data).hexdigest()
    for key in [key for key in manifest if key.endswith("_sha256") and key not in ("tokenizer_sha256",)]:
        del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    index = json.loads((path.parent / "index.json").read_text())
    index["updated_at"] = split["sha256"]
    (path.parent / "index.json").write_text(json.dumps(index))
    Manifest.read(folder)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (flip, 1, "is damaged (sha256 "),
        (foreign_id, 1, "holds id 320 at token "),
        (truncate, 2, " bytes, "),
        (Path.unlink, 2, "is missing"),
    ],
)
def test_found_by_the_run(
    fit: Any, copy: Path, damage: Callable[[Path], None], code: int, message: str, split: str, workers: int
) -> None:
    path = copy / split / "chunk-0-0.bin"
    damage(path)
    found, said = fit("run", data__shards=str(copy), data__num_workers=workers)
    assert found == code, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"'{path}'" in errors[0] and message in errors[0], said
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_during_a_run_loses_nothing(fit: Any, copy: Path, shards: Path, tmp_path: Path, workers: int) -> None:
    """A shard is damaged between two starts: the second one says so, and goes on once it is restored."""
    assert fit("whole", data__num_workers=workers)[0] == 0
    assert fit("run", *signal_at(7), data__shards=str(copy), data__num_workers=workers)[0] == 128 + 15
    path = copy / "train" / "chunk-0-0.bin"
    flip(path)
    code, said = fit("run", "--ckpt_path", "last", data__shards=str(copy), data__num_workers=workers)
    assert code == 1 and f"error: '{path}' is damaged" in said
    shutil.copy(shards / "train" / "chunk-0-0.bin", path)
    assert fit("run", "--ckpt_path", "last", data__shards=str(copy), data__num_workers=workers)[0] == 0
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "run"))


def test_an_index_that_disagrees_is_refused(fit: Any, copy: Path) -> None:
    path = copy / "train" / "index.json"
    index = json.loads(path.read_text())
    index["chunks"][0]["dim"] -= 1
    path.write_text(json.dumps(index))
    code, said = fit("run", data__shards=str(copy))
    assert code == 2 and f"'{path}' is damaged" in said and "Traceback" not in said

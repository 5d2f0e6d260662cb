"""Checkpoint files: whole or not there, damage found wherever it is, and the newest whole one gone on from."""

import itertools
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import tiny_config
from tests.test_resume import assert_same_state, last, signal_at
from tst_lightning.__main__ import main
from tst_lightning.checkpoint_file import read_step
from tst_lightning.checkpoint_io import WholeCheckpointIO
from tst_lightning.errors import RunError

EVERY = {"trainer__val_check_interval": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A finished run of 20 steps; its configuration lies beside it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_config(folder / "run", shards, **EVERY), sort_keys=False))
    assert main(["fit", "--config", str(folder / "run.yaml")]) == 0
    return folder / "run"


def tensors(value: Any) -> Iterator[Any]:
    """All leaves of a checkpoint, in order."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from tensors(inner)
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(tensors, value))
    else:
        yield value


def same(a: Any, b: Any) -> bool:
    pairs = itertools.zip_longest(tensors(a), tensors(b), fillvalue=tensors)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def refused(path: Path) -> bool:
    """Whether a checkpoint is refused, by one line that names it."""
    try:
        read_step(path)
    except RunError as error:
        assert f"'{path}'" in str(error) and "\n" not in str(error)
        return True
    return False


# -- damage -------------------------------------------------------------------------------------------------------


def test_torch_itself_does_not_see_a_flipped_bit(finished: Path, tmp_path: Path) -> None:
    """Or looking a checkpoint through would be needless."""
    whole = finished / "checkpoints" / "last.ckpt"
    content = bytearray(whole.read_bytes())
    weight = last(finished)["state_dict"]["model.lm.lm_head.weight"].numpy().tobytes()
    content[content.index(weight)] ^= 1
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(content)
    assert not same(torch.load(path, weights_only=True), torch.load(whole, weights_only=True))
    assert refused(path)


def test_any_flipped_byte_is_found_or_harmless(finished: Path, tmp_path: Path) -> None:
    """Over the whole file, and thickly where the archive keeps its names, sizes and places."""
    whole = finished / "checkpoints" / "last.ckpt"
    content, expected = whole.read_bytes(), torch.load(whole, weights_only=True)
    draw = random.Random(1)
    directory = content.index(b"PK\x01\x02")
    header = content.index(b"PK\x03\x04", 1000)
    places = [draw.randrange(len(content)) for _ in range(100)]
    places += [draw.randrange(directory, len(content)) for _ in range(100)]
    places += [*range(40), *range(header, header + 80), *range(directory + 290, directory + 360)]
    places += range(len(content) - 98, len(content))  # where the directory is found
    path = tmp_path / "flipped.ckpt"
    found = 0
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= draw.choice([1 << bit for bit in range(8)] + [255])
        path.write_bytes(flipped)
        if refused(path):
            found += 1
        else:
            assert same(torch.load(path, weights_only=True), expected), f"byte {place} of {len(content)}"
    assert found > len(places) / 2


def test_any_cut_is_found(finished: Path, tmp_path: Path) -> None:
    content = (finished / "checkpoints" / "last.ckpt").read_bytes()
    draw = random.Random(2)
    path = tmp_path / "cut.ckpt"
    for size in [
        0,
        1,
        2,
        100,
        *(draw.randrange(len(content)) for _ in range(50)),
        *range(len(content) - 30, len(content)),
    ]:
        path.write_bytes(content[:size])
        assert refused(path), size


# -- writing ------------------------------------------------------------------------------------------------------


def test_a_killed_runs_leftovers_go_and_other_files_stay(tmp_path: Path) -> None:
    for name in ("best-step=5.ckpt.partial", "last.ckpt.partial", "notes.partial", "best-step=5.ckpt"):
        (tmp_path / name).write_text("x")
    WholeCheckpointIO().save_checkpoint({"a": torch.ones(3)}, tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-step=5.ckpt", "last.ckpt", "notes.partial"]
    assert torch.equal(torch.load(tmp_path / "last.ckpt")["a"], torch.ones(3))


def resident_mib(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) >> 10


def test_a_checkpoint_is_not_copied_in_memory(tmp_path: Path) -> None:
    checkpoint = {"a": torch.ones(64 << 18)}
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, begins anew
    before = resident_mib("VmRSS")
    WholeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "big.ckpt")
    assert resident_mib("VmHWM") - before < 32  # of the tensor's 64


# -- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_the_newest_whole_one_is_taken_for_last(fit: Any, finished: Path, tmp_path: Path, damage: str) -> None:
    assert fit("run", *signal_at(12), **EVERY)[0] == 143
    folder = tmp_path / "run" / "checkpoints"
    bad = folder / "last.ckpt"
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 4
    bad.write_bytes(content if damage == "flipped" else content[:-1000])
    newest, step = folder / "best-step=12.ckpt", 12
    if damage == "cut":  # the next one as well
        newest.write_bytes(newest.read_bytes()[:-1000])
        newest, step = folder / "switch-recovery-step=10.ckpt", 10
    if damage == "gone":
        bad.unlink()
    code, said = fit("run", "--ckpt_path", "last", **EVERY)
    assert code == 0, said
    (note,) = [line for line in said.splitlines() if "is taken in its place" in line]
    assert f"'{bad}'" in note and f"'{newest}', of step {step}, is taken" in note
    assert f"resumed   at step {step} of 20" in said
    assert_same_state(last(finished), last(tmp_path / "run"))
    assert not refused(bad)


def test_scoring_takes_the_newest_whole_one_too(finished: Path, tmp_path: Path, capfd: Any) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"")
    capfd.readouterr()
    config = str(finished.with_suffix(".yaml"))
    assert main(["validate", "--config", config, "--run_dir", str(tmp_path / "run")]) == 0
    assert "best-step=20.ckpt', of step 20, is taken in its place" in capfd.readouterr().out


def test_no_whole_one(fit: Any, tmp_path: Path) -> None:
    assert fit("run", *signal_at(12))[0] == 143
    paths = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(paths) == 3
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    code, said = fit("run", "--ckpt_path", "last")
    assert code == 1 and said.startswith("error: no checkpoint of the run is whole: ") and said.count("\n") == 1
    assert all(f"'{path}'" in said for path in paths)


def test_a_finished_run_leaves_nothing_to_another(fit: Any, finished: Path, tmp_path: Path) -> None:
    theirs = finished / "checkpoints" / "last.ckpt"
    code, said = fit("run", "--ckpt_path", str(theirs))
    assert code == 2 and said.count("\n") == 1
    assert f"'{theirs}' is of step 20, and trainer.max_steps is 20: no step is left to take" in said
    assert not (tmp_path / "run").exists()


def test_a_run_killed_after_its_last_checkpoint_is_finished(finished: Path, tmp_path: Path, capfd: Any) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running", "step": 15}))
    command = ["fit", "--config", str(finished.with_suffix(".yaml")), "--run_dir", str(tmp_path / "run")]
    assert main([*command, "--ckpt_path", "last"]) == 0
    assert "20 steps, all taken before it was killed" in capfd.readouterr().out
    assert json.loads(path.read_text()) == json.loads((finished / "run.json").read_text())


def test_the_last_checkpoint_is_the_last_whatever_the_best(fit: Any, tmp_path: Path) -> None:
    """The loss only falls; with the highest taken for the best, the best is the first."""
    assert fit("run", callbacks__best__init_args__mode="max")[0] == 0
    steps = {path.name: read_step(path) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert steps == {"best-step=5.ckpt": 5, "switch-recovery-step=10.ckpt": 10, "last.ckpt": 20}

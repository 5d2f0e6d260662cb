"""Damages copies of real shards in many ways, and counts what ``tst prepare --verify`` and ``tst fit`` find.

Each damage is made on a fresh copy, from a seed of its own. It is caught by a command that ends with an error of one line
and names the damaged file, before its time is up. Training runs with default settings and reads every train shard once,
so that a shard must be found where it is first touched. An undamaged copy goes first: it must be accepted by both.

    python benchmarks/damage_shards.py --out benchmarks/results/damage_shards.json
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from tst_lightning.shards.manifest import HEADER_BYTES, SPLITS, TOKEN_BYTES, Manifest
from tst_lightning.shards.tokenizer import canonical_sha256

SEQ_LEN, BLOCK_ROWS, BATCH_SIZE = 32, 4, 64
TIMEOUT = 120  # seconds; an undamaged run takes about ten

Damage = Callable[[Path, random.Random], str]
KINDS: dict[str, Damage] = {}


def damage(function: Damage) -> Damage:
    """Registers a way to damage a folder of shards; it returns the damaged file's name, relative to the folder."""
    KINDS[function.__name__.replace("_", " ")] = function
    return function


def _chunk(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(folder.glob("*/*.bin")))


def _flip(path: Path, chance: random.Random, same: Callable[[bytes], bool] = lambda content: False) -> None:
    """Flips one bit; another one, if after that the file means the same to a reader of it."""
    before = path.read_bytes()
    while True:
        content = bytearray(before)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        if not same(bytes(content)):
            path.write_bytes(content)
            return


def _same_json(path: Path, meaning: Callable[[str], Any]) -> Callable[[bytes], bool]:
    before = meaning(path.read_text())

    def same(content: bytes) -> bool:
        try:
            return bool(meaning(content.decode()) == before)
        except (ValueError, AttributeError):
            return False

    return same


def _edit_index(folder: Path, chance: random.Random, change: Callable[[dict[str, Any]], Any]) -> str:
    name = f"{chance.choice(SPLITS)}/index.json"
    index = json.loads((folder / name).read_text())
    change(index)
    (folder / name).write_text(json.dumps(index))
    return name


@damage
def shard_cut_short(folder: Path, chance: random.Random) -> str:
    path = _chunk(folder, chance)
    os.truncate(path, chance.randrange(path.stat().st_size))
    return path.relative_to(folder).as_posix()


@damage
def shard_grown(folder: Path, chance: random.Random) -> str:
    path = _chunk(folder, chance)
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randrange(1, 5000)))
    return path.relative_to(folder).as_posix()


@damage
def shard_bit_flipped(folder: Path, chance: random.Random) -> str:
    path = _chunk(folder, chance)
    _flip(path, chance)
    return path.relative_to(folder).as_posix()


@damage
def shard_page_zeroed(folder: Path, chance: random.Random) -> str:
    path = _chunk(folder, chance)
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content) - 512)
    content[start : start + 512] = bytes(512)
    path.write_bytes(content)
    return path.relative_to(folder).as_posix()


@damage
def shard_deleted(folder: Path, chance: random.Random) -> str:
    path = _chunk(folder, chance)
    path.unlink()
    return path.relative_to(folder).as_posix()


@damage
def shards_swapped(folder: Path, chance: random.Random) -> str:
    one, other = chance.sample(sorted(folder.glob("train/*.bin"))[:-1], 2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return "train/"  # either may be named


@damage
def id_beyond_vocabulary_with_hashes_that_fit(folder: Path, chance: random.Random) -> str:
    manifest, path = Manifest.parse(folder), _chunk(folder, chance)
    split, info = path.parent.name, getattr(manifest, path.parent.name)
    content = bytearray(path.read_bytes())
    size = TOKEN_BYTES[manifest.dtype]
    at = HEADER_BYTES + size * chance.randrange((len(content) - HEADER_BYTES) // size)
    largest = np.iinfo(manifest.dtype).max
    content[at : at + size] = np.array(chance.randint(manifest.vocab_size, largest), manifest.dtype).tobytes()
    path.write_bytes(content)
    chunks = [
        chunk | {"sha256": hashlib.sha256((folder / split / chunk["filename"]).read_bytes()).hexdigest()}
        for chunk in info.chunks
    ]
    whole = hashlib.sha256(b"".join((folder / split / chunk["filename"]).read_bytes() for chunk in chunks)).hexdigest()
    changed = dataclasses.replace(info, chunks=chunks, sha256=whole)
    dataclasses.replace(manifest, **{split: changed}).write(folder)
    index = json.loads((folder / split / "index.json").read_text())
    (folder / split / "index.json").write_text(json.dumps(index | {"updated_at": whole}))
    return path.relative_to(folder).as_posix()


@damage
def index_bit_flipped(folder: Path, chance: random.Random) -> str:
    name = f"{chance.choice(SPLITS)}/index.json"
    _flip(folder / name, chance, _same_json(folder / name, json.loads))
    return name


@damage
def index_without_a_shard(folder: Path, chance: random.Random) -> str:
    return _edit_index(folder, chance, lambda index: index["chunks"].pop(chance.randrange(len(index["chunks"]))))


@damage
def index_with_other_lengths(folder: Path, chance: random.Random) -> str:
    def change(index: dict[str, Any]) -> None:
        chance.choice(index["chunks"])["dim"] += chance.choice([-100, -1, 1, 100, 10**9])

    return _edit_index(folder, chance, change)


@damage
def index_in_another_order(folder: Path, chance: random.Random) -> str:
    return _edit_index(folder, chance, lambda index: index["chunks"].reverse())


@damage
def index_of_another_format(folder: Path, chance: random.Random) -> str:
    key, value = chance.choice(
        [("data_format", ["pickle"]), ("data_format", ["no_header_tensor:6"]), ("compression", "zstd")]
        + [("item_loader", "PyTreeLoader"), ("encryption", {"algorithm": "fernet", "level": "chunk"})]
    )
    return _edit_index(folder, chance, lambda index: index["config"].update({key: value}))


@damage
def index_cut_short(folder: Path, chance: random.Random) -> str:
    name = f"{chance.choice(SPLITS)}/index.json"
    os.truncate(folder / name, chance.randrange((folder / name).stat().st_size))
    return name


@damage
def manifest_bit_flipped(folder: Path, chance: random.Random) -> str:
    path = folder / "manifest.json"
    _flip(path, chance, _same_json(path, json.loads))
    return "manifest.json"


@damage
def manifest_cut_short(folder: Path, chance: random.Random) -> str:
    os.truncate(folder / "manifest.json", chance.randrange((folder / "manifest.json").stat().st_size - 1))
    return "manifest.json"


@damage
def manifest_deleted(folder: Path, chance: random.Random) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json"


@damage
def tokenizer_bit_flipped(folder: Path, chance: random.Random) -> str:
    path = folder / "tokenizer.json"
    _flip(path, chance, _same_json(path, canonical_sha256))
    return "tokenizer.json"


@damage
def tokenizer_ids_swapped(folder: Path, chance: random.Random) -> str:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, other = chance.sample(sorted(vocabulary), 2)
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content))
    return "tokenizer.json"


@damage
def tokenizer_deleted(folder: Path, chance: random.Random) -> str:
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json"


def tst(*arguments: str) -> dict[str, Any]:
    """Runs the real command.

    Returns:
        Exit code (None when its time was up), all that it printed, and seconds.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tst_lightning", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        printed, exit_code = process.communicate(timeout=TIMEOUT)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        printed, exit_code = process.communicate()[0], None
    return {"exit_code": exit_code, "printed": printed, "seconds": round(time.monotonic() - started, 1)}


def verify(folder: Path) -> dict[str, Any]:
    """Checks a folder with ``tst prepare --verify``."""
    return tst("prepare", "--verify", str(folder))


def fit(folder: Path, run_dir: Path, steps: int) -> dict[str, Any]:
    """Trains the quickstart's configuration, shrunk, on a folder; the first phase, half of the steps, reads it all."""
    changes = {
        "run_dir": run_dir,
        "data.shards": folder,
        "data.seq_len": SEQ_LEN,
        "data.batch_size": BATCH_SIZE,
        "data.block_rows": BLOCK_ROWS,
        "model.config.init_args.vocab_size": 320,
        "model.config.init_args.hidden_size": 24,
        "model.config.init_args.intermediate_size": 32,
        "model.config.init_args.num_hidden_layers": 1,
        "model.phases.superposition.init_args.bag_size": BLOCK_ROWS,
        "model.phases.superposition.init_args.share": 0.5,
        "model.lr_schedule.warmup_steps": 2,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": steps,
    }
    options = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    return tst("fit", "--config", "configs/quickstart/tst.yaml", *options)


def outcome(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Whether a command caught the damage of a file."""
    lines = result["printed"].strip().splitlines() or [""]
    traceback = "Traceback (most recent call last)" in result["printed"]
    error = lines[-1].partition("error: ")[2]
    named = name in result["printed"]
    return {
        "caught": result["exit_code"] in (1, 2) and bool(error) and named and not traceback,
        "exit_code": result["exit_code"],
        "message": error or lines[-1],
        "traceback": traceback,
        "hung": result["exit_code"] is None,
        "seconds": result["seconds"],
    }


def one_case(seed: int, kind: str, shards: Path, scratch: Path, steps: int) -> dict[str, Any]:
    """Damages a copy of the shards and has both commands look at it."""
    folder = scratch / f"{seed:04}"
    shutil.copytree(shards, folder)
    name = KINDS[kind](folder, random.Random(seed))
    found = {
        "verify": outcome(verify(folder), name),
        "fit": outcome(fit(folder, scratch / f"{seed:04}-run", steps), name),
    }
    for path in (folder, scratch / f"{seed:04}-run"):
        shutil.rmtree(path, ignore_errors=True)
    found = json.loads(json.dumps(found).replace(str(folder), "SHARDS"))
    print(
        f"{seed:4} {kind:45} {name:24} verify {found['verify']['caught']!s:5} fit {found['fit']['caught']}", flush=True
    )
    return {"seed": seed, "kind": kind, "file": name, **found}


def prepare(folder: Path) -> int:
    """Makes the shards to damage, checks that both commands accept them, and gives the steps that read them all."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    sources = [
        str(stdlib / name) for name in ("argparse.py", "csv.py", "json", "html", "heapq.py", "copy.py", "glob.py")
    ]
    arguments = ["--vocab_size", "320", "--val_share", "0.2", "--chunk_bytes", "16384", "--out", str(folder)]
    made = tst("prepare", *sources, *arguments)
    assert made["exit_code"] == 0, made["printed"]
    block = BLOCK_ROWS * (SEQ_LEN + 1)
    blocks = sum(chunk["tokens"] // block for chunk in Manifest.read(folder).train.chunks)
    steps = 2 * ceil(blocks / BATCH_SIZE)
    for result in (verify(folder), fit(folder, folder.with_name("undamaged-run"), steps)):
        assert result["exit_code"] == 0, result["printed"]
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file (JSON)")
    parser.add_argument("--damages", type=int, default=100, help="how many, spread over the kinds")
    parser.add_argument("--seed", type=int, default=0, help="of the first damage; the others count on")
    parser.add_argument("--parallel", type=int, default=2, help="damages looked at at a time")
    options = parser.parse_args()

    kinds = list(KINDS)
    with tempfile.TemporaryDirectory() as scratch:
        steps = prepare(Path(scratch, "shards"))
        with ThreadPoolExecutor(options.parallel) as pool:
            cases = list(
                pool.map(
                    lambda number: one_case(
                        options.seed + number, kinds[number % len(kinds)], Path(scratch, "shards"), Path(scratch), steps
                    ),
                    range(options.damages),
                )
            )
    made = Counter(case["kind"] for case in cases)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    document = {
        "commit": commit,
        "machine": f"{os.cpu_count()} CPU cores, one thread a run, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "lightning", "litdata")},
        "first_seed": options.seed,
        "steps": steps,
        "made": len(cases),
        "caught": {command: sum(case[command]["caught"] for case in cases) for command in ("verify", "fit")},
        "tracebacks": sum(case[command]["traceback"] for case in cases for command in ("verify", "fit")),
        "hangs": sum(case[command]["hung"] for case in cases for command in ("verify", "fit")),
        "kinds": {
            kind: {"made": made[kind]}
            | {
                command: sum(case[command]["caught"] for case in cases if case["kind"] == kind)
                for command in ("verify", "fit")
            }
            for kind in made
        },
        "cases": cases,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(*(f"{document['caught'][c]} of {len(cases)} damages caught by {c}" for c in ("verify", "fit")), sep="\n")
    print(f"{document['tracebacks']} tracebacks, {document['hangs']} hangs")


if __name__ == "__main__":
    main()

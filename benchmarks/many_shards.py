"""What 2T tokens ask of the data's own machinery: start, resume, state and memory at 10,000 shards, hashing, preparing.

The shards are real to everything that reads them (index, manifest, sizes, hashes), and take no disk: files with holes,
whose tokens are all 0. Their number and size are those of the 10B-A1B run in two corpora. Each count of shards is measured
in processes of its own, as rank 0 of 64. Preparing is `tst prepare` itself on this Python's own sources, one thread, with a
tokenizer trained before. Times are seconds of CPU of one core, so that work beside does not count; disks are not measured.

    python benchmarks/many_shards.py --out benchmarks/results/many_shards.json
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from provenance import hardware, source

COUNTS = (100, 1000, 10_000)
CHUNK_BYTES = 768 << 20
SEQ_LEN, BLOCK_ROWS, BATCH_SIZE, MICRO_BATCHES, RANKS, MACHINES = 2048, 16, 32, (24_966, 75_000), 64, 8
BATCHES_READ = 40
VOCAB_SIZE = 32_000
TEXT_BYTES = 40_000_000


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU of this process, all threads, and what the call gives."""
    begin = time.process_time()
    result = call()
    return time.process_time() - begin, result


def anonymous_bytes() -> int:
    """Memory of this process that is no page of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def write_holes(folder: Path, chunks: int) -> None:
    """A folder of shards whose token files are holes."""
    from tst_lightning.shards.manifest import HEADER_BYTES, MANIFEST_VERSION, SPLITS, Manifest, SplitInfo
    from tst_lightning.shards.tokenizer import canonical_sha256

    tokens = (CHUNK_BYTES - HEADER_BYTES) // 4
    size = HEADER_BYTES + 4 * tokens
    head = np.array([1, HEADER_BYTES, size], "<u4").tobytes()
    digest, zeros = hashlib.sha256(head), bytes(1 << 20)
    for begin in range(HEADER_BYTES, size, len(zeros)):
        digest.update(zeros[: size - begin])
    splits = {}
    for split, count in zip(SPLITS, (chunks, 1), strict=True):
        (folder / split).mkdir(parents=True)
        entries = [
            {"filename": f"chunk-0-{number}.bin", "tokens": tokens, "size_bytes": size, "sha256": digest.hexdigest()}
            for number in range(count)
        ]
        for entry in entries:
            with open(folder / split / str(entry["filename"]), "wb") as file:
                file.write(head)
                file.truncate(size)
        # Of a split no one takes the hash again; it names the folder's content.
        name = hashlib.sha256(f"{folder.name} {split} {count}".encode()).hexdigest()
        splits[split] = SplitInfo(tokens * count, count, 4 * tokens * count, entries, name)
        index = {
            "chunks": [
                {"chunk_bytes": size, "chunk_size": 1, "dim": tokens, "filename": entry["filename"]}
                for entry in entries
            ],
            "config": {
                "chunk_bytes": None,
                "chunk_size": tokens,
                "compression": None,
                "data_format": ["no_header_tensor:16"],
                "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
                "encryption": None,
                "item_loader": "TokensLoader",
            },
            "updated_at": name,
        }
        (folder / split / "index.json").write_text(json.dumps(index, sort_keys=True))
    (folder / "tokenizer.json").write_text("{}")
    manifest = Manifest(
        version=MANIFEST_VERSION,
        tokenizer="none",
        tokenizer_sha256=canonical_sha256("{}"),
        vocab_size=128_256,
        dtype="int32",
        end_of_document_id=0,
        train=splits["train"],
        val=splits["val"],
        sources={},
        sources_fingerprint="",
        options={},
    )
    manifest.write(folder)


def measure_stream(root: Path) -> dict[str, float]:
    """Start, first rows, state and resume of one rank's stream over both corpora; memory on top of the imports'."""
    import torch

    from tst_lightning.data.blocks import BlockReader, Cache, Replica
    from tst_lightning.data.corpora import CorpusShare, open_corpora
    from tst_lightning.data.mixture import Mixture
    from tst_lightning.data.rows import RowPlan
    from tst_lightning.data.stream import RowStream

    block = BLOCK_ROWS * (SEQ_LEN + 1)
    plans = [
        RowPlan("superposition", BLOCK_ROWS, block, MICRO_BATCHES[0]),
        RowPlan("recovery", 1, SEQ_LEN + 1, MICRO_BATCHES[1]),
    ]
    imported = anonymous_bytes()
    shards = {path.name: CorpusShare(str(path), 0.5) for path in sorted(root.iterdir())}
    opened, corpora = cpu_seconds(lambda: open_corpora(shards))

    def stream() -> tuple[RowStream, list[BlockReader]]:
        readers = [BlockReader(corpus, block, 1, 0, Replica(0, RANKS, MACHINES), Cache()) for corpus in corpora]
        return RowStream(Mixture(readers, [1, 1]), plans, block, BATCH_SIZE, 64, 1, {}), readers

    hashing, _ = cpu_seconds(lambda: corpora[0].manifest.verify("val"))

    def begin(stream: RowStream) -> Any:
        rows = iter(stream)
        next(rows)
        return rows

    fresh, readers = stream()
    first, rows = cpu_seconds(lambda: begin(fresh))
    for _ in range(BATCHES_READ):
        next(rows)
    memory = anonymous_bytes() - imported
    taking, state = cpu_seconds(fresh.state_dict)

    def saved_bytes(state: Any) -> int:
        file = io.BytesIO()
        torch.save(state, file)
        return len(file.getvalue())

    again, _ = stream()
    again.load_state_dict(state)
    again.expected_batches = state["batches"]
    resumed, _ = cpu_seconds(lambda: begin(again))
    return {
        "open_seconds": opened,
        # Both corpora's first chunks are hashed on the way, and the next ones beside.
        "first_rows_seconds": first,
        "resumed_rows_seconds": resumed,
        "state_seconds": taking,
        "state_bytes": saved_bytes(state),
        "litdata_state_bytes": saved_bytes([reader._loader.state_dict() for reader in readers]),
        "manifest_bytes": sum((path / "manifest.json").stat().st_size for path in root.iterdir()),
        "hash_bytes_per_second": CHUNK_BYTES / hashing,
        "memory_bytes": memory,
    }


class TimedEncoder:
    """A tokenizer's encoder that adds up the seconds of CPU it takes."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.seconds = 0.0

    def encode_batch_fast(self, *arguments: Any, **options: Any) -> Any:
        """As the encoder's."""
        seconds, encodings = cpu_seconds(lambda: self.encoder.encode_batch_fast(*arguments, **options))
        self.seconds += seconds
        return encodings


def measure_prepare(folder: Path) -> dict[str, float]:
    """`tst prepare` in one thread: its seconds, and those of them that the tokenizer takes, which all cores share."""
    from tst_lightning.shards.build import build
    from tst_lightning.shards.tokenizer import ShardTokenizer

    common: dict[str, Any] = {"inputs": [], "python_source": "packages", "max_bytes": TEXT_BYTES, "val_share": 0.05}
    if not (folder / "trained").exists():
        build(**common, out=str(folder / "trained"), vocab_size=VOCAB_SIZE)
    encoders: list[TimedEncoder] = []
    plain = ShardTokenizer.encoder

    def timed(tokenizer: ShardTokenizer) -> Any:
        encoders.append(TimedEncoder(plain(tokenizer)))
        return encoders[-1]

    ShardTokenizer.encoder = timed  # type: ignore[method-assign]
    out, name = str(folder / "out"), str(folder / "trained")
    whole, (manifest, _) = cpu_seconds(lambda: build(**common, out=out, tokenizer=name, overwrite=True))
    tokens = manifest.train.tokens + manifest.val.tokens
    text = manifest.train.bytes + manifest.val.bytes
    return {
        "tokens": tokens,
        "bytes_per_token": text / tokens,
        "seconds": whole,
        "tokenizer_seconds": sum(encoder.seconds for encoder in encoders),
        "vocab_size": manifest.vocab_size,
    }


def run(part: str, folder: Path) -> dict[str, float]:
    """One measurement, in a process of its own."""
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures all, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=["stream", "prepare"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        measured = {"stream": measure_stream, "prepare": measure_prepare}[options.part](options.folder)
        print(json.dumps(measured))
        return
    result: dict[str, Any] = source() | {
        "hardware": hardware(1),
        "settings": {"chunk_bytes": CHUNK_BYTES, "ranks": RANKS},
    }
    result["settings"] |= {"block_tokens": BLOCK_ROWS * (SEQ_LEN + 1), "text_bytes": TEXT_BYTES, "corpora": 2}
    with tempfile.TemporaryDirectory() as temporary:
        result["stream"] = {}
        for count in COUNTS:
            root = Path(temporary) / str(count)
            for corpus in ("dclm", "fineweb_edu"):
                write_holes(root / corpus, count // 2)
            result["stream"][count] = [run("stream", root) for _ in range(options.rounds)]
        result["prepare"] = [run("prepare", Path(temporary)) for _ in range(options.rounds)]
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

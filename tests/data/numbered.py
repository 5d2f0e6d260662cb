"""Corpora whose tokens are numbers, each occurring once, so that every token can be told from every other."""

from collections.abc import Sequence
from pathlib import Path

from tst_lightning.data.blocks import BlockReader, Cache, Replica
from tst_lightning.data.corpora import Corpus
from tst_lightning.data.mixture import Mixture
from tst_lightning.data.rows import RowPlan
from tst_lightning.data.stream import RowStream
from tst_lightning.shards.manifest import MANIFEST_VERSION, Manifest, SplitInfo
from tst_lightning.shards.writer import HEADER_BYTES, ShardWriter


def numbered_corpus(
    folder: Path, name: str = "all", first: int = 0, tokens: int = 2000, chunk_tokens: int = 700, parts: int = 1
) -> Corpus:
    """Tokens ``first`` to ``first + tokens - 1`` in order, in files of ``chunk_tokens``."""
    writer = ShardWriter(folder / "train", "uint16", HEADER_BYTES + 2 * chunk_tokens)
    writer.add(range(first, first + tokens))
    chunks, sha256 = writer.finish()
    split = SplitInfo(tokens, 1, tokens, chunks, sha256)
    manifest = Manifest(
        version=MANIFEST_VERSION,
        tokenizer="none",
        tokenizer_sha256="0" * 64,
        vocab_size=65_536,
        dtype="uint16",
        end_of_document_id=0,
        train=split,
        val=split,
        sources={},
        sources_fingerprint="",
        options={},
        folder=folder,
    )
    return Corpus(name, str(folder), parts, 0.0, manifest)


def stream(
    corpora: Sequence[Corpus],
    plans: list[RowPlan],
    block_tokens: int,
    batch_size: int = 3,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pool_blocks: int = 6,
    seed: int = 1,
    cache: Cache = Cache(),  # noqa: B008
    **layout: object,
) -> RowStream:
    """One rank's stream over the corpora."""
    replica = Replica(rank, world_size)
    readers = [BlockReader(corpus, block_tokens, seed, workers, replica, cache) for corpus in corpora]
    mixture = Mixture(readers, [corpus.parts for corpus in corpora])
    return RowStream(mixture, plans, block_tokens, batch_size, pool_blocks, seed, layout)

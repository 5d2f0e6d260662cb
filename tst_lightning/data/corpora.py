"""The corpora that a run reads: where each lies, its share of the mixture, and its manifest."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path

from tst_lightning.data.remote import fetch, is_remote, sizes
from tst_lightning.errors import ConfigError
from tst_lightning.shards.manifest import SPLITS, Manifest
from tst_lightning.shards.verify import check_index, check_tokenizer


@dataclass(frozen=True)
class CorpusShare:
    """One corpus of a mixture.

    Args:
        path: folder of ``tst prepare``, local or ``s3://``.
        weight: its share of the tokens, relative to the other corpora's.
    """

    path: str
    weight: float = 1.0


@dataclass(frozen=True)
class Corpus:
    """A corpus whose small files (manifest, indexes, tokenizer) were read and found to agree.

    Attributes:
        name: as in the YAML; appears in the log.
        path: folder of the shards, local or ``s3://``.
        parts: its integer share of the sum over all corpora.
        share: that share, 0 to 1.
        manifest: what it holds.
    """

    name: str
    path: str
    parts: int
    share: float
    manifest: Manifest

    def split(self, name: str) -> str:
        """Folder of a split, absolute where it is local."""
        return f"{self.path.rstrip('/')}/{name}" if is_remote(self.path) else str((Path(self.path) / name).resolve())

    def blocks(self, block_tokens: int) -> int:
        """Whole blocks in the train split."""
        return sum(chunk["tokens"] // block_tokens for chunk in self.manifest.train.chunks)


def open_corpora(shards: str | Mapping[str, CorpusShare]) -> list[Corpus]:
    """Reads the manifests of one corpus or of a mixture.

    Args:
        shards: a folder, or name -> folder and weight.

    Raises:
        ConfigError: no corpus, a name that can't be a tag, a weight not above 0, corpora of different tokenizers; shards
            that are missing, unfinished or damaged.
        RunError: remote shards can't be reached.
    """
    if isinstance(shards, str):
        return [Corpus("all", shards, 1, 1.0, _read_manifest(shards))]
    if not shards:
        raise ConfigError(
            "data.shards names no corpus; give a folder of `tst prepare`, or NAME: {path: ..., weight: ...}"
        )
    for name, entry in shards.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ConfigError(f"data.shards names a corpus {name!r}; use letters, digits, _ and -: it becomes a tag")
        if not 0 < entry.weight < float("inf"):
            raise ConfigError(
                f"data.shards.{name}.weight is {entry.weight}; it must be above 0, or leave the corpus out"
            )
    # As they are written in decimals, so that 0.7 and 0.3 are seven and three parts of ten.
    weights = [Fraction(str(entry.weight)) for entry in shards.values()]
    unit = lcm(*(weight.denominator for weight in weights))
    parts = [int(weight * unit) for weight in weights]
    parts = [part // gcd(*parts) for part in parts]
    corpora = [
        Corpus(name, entry.path, part, part / sum(parts), _read_manifest(entry.path))
        for (name, entry), part in zip(shards.items(), parts, strict=True)
    ]
    for corpus in corpora[1:]:
        mine, first = corpus.manifest.tokenizer_sha256, corpora[0].manifest.tokenizer_sha256
        if mine != first:
            raise ConfigError(
                f"corpora '{corpora[0].name}' and '{corpus.name}' were made with different tokenizers (sha256"
                f" {first[:12]}... and {mine[:12]}...): prepare both with the same --tokenizer"
            )
    return corpora


def _read_manifest(path: str) -> Manifest:
    if not is_remote(path):
        return _checked(Path(path), chunks_here=True)
    with tempfile.TemporaryDirectory() as folder:
        names = ("manifest.json", "tokenizer.json", *(f"{split}/index.json" for split in SPLITS))
        fetch(path, names, Path(folder))
        manifest = _checked(Path(folder), chunks_here=False)
    _check_sizes(path, manifest)
    return manifest


def _check_sizes(url: str, manifest: Manifest) -> None:
    """What Manifest.read does for local chunks: all there, none cut off."""
    found = sizes(url)
    for split in SPLITS:
        for chunk in getattr(manifest, split).chunks:
            name = f"{split}/{chunk['filename']}"
            if found.get(name) != chunk["size_bytes"]:
                has = f"has {found[name]:,} bytes" if name in found else "is missing"
                raise ConfigError(
                    f"'{url}/{name}' {has}, {chunk['size_bytes']:,} bytes were written: copy it there again"
                )


def _checked(folder: Path, chunks_here: bool) -> Manifest:
    manifest = Manifest.read(folder, check_chunks=chunks_here)
    check_tokenizer(folder / "tokenizer.json", manifest)
    for split in SPLITS:
        check_index(folder / split / "index.json", getattr(manifest, split), manifest.dtype)
    return manifest

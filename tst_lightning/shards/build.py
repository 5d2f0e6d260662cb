"""The pipeline of `tst prepare`: documents -> tokens -> shards, in a folder that appears only when it is complete.

One process reads and writes; the tokenizer encodes each batch on all cores. So the shards have the same bytes whatever
the number of cores, and memory is bounded by one batch and a few chunks.
"""

import dataclasses
import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tst_lightning.corpus.documents import Counts, Document, Source, read_documents
from tst_lightning.corpus.inputs import find_sources
from tst_lightning.corpus.python_source import by_content, find_python_files
from tst_lightning.errors import ConfigError, RunError
from tst_lightning.shards.manifest import MANIFEST_NAME, MANIFEST_VERSION, SPLITS, Manifest, SplitInfo
from tst_lightning.shards.whole_folder import partial_folder, publish

if TYPE_CHECKING:
    from tst_lightning.shards.tokenizer import ShardTokenizer

BATCH_CHARACTERS = 4 << 20  # text encoded at once; the encodings take some hundred bytes a token
VOCAB_SIZE = 4096  # of a trained tokenizer, unless told
_NAMED = 5  # links named when they are passed over


def build(
    inputs: list[str],
    out: str,
    python_source: Literal["none", "stdlib", "packages"] = "none",
    vocab_size: int | None = None,
    tokenizer: str | None = None,
    val_share: float = 0.01,
    text_field: str = "text",
    max_bytes: int | None = None,
    tokenizer_train_bytes: int = 256_000_000,
    chunk_bytes: int = 1 << 26,
    overwrite: bool = False,
) -> tuple[Manifest, bool]:
    """Turns text into tokenised shards for training and validation, with a manifest.

    Args:
        inputs: files, folders and globs of text (.txt .md .py ...), .jsonl, .jsonl.gz, .jsonl.zst (lines of at most
            256 MiB) and .parquet. Links that lead out of a given folder or glob are not followed.
        out: folder to write; it appears when it is complete.
        python_source: also read the running interpreter's own source files: the standard library ("stdlib"), or that
            and the installed packages ("packages").
        vocab_size: ids of the tokenizer to train, at least 257; 4096 unless given. A --tokenizer has its own.
        tokenizer: an existing tokenizer in place of a trained one: tokenizer.json, folder, or Hugging Face hub name.
        val_share: share of the documents held out for validation, above 0 and below 1. The hash of a document's text
            decides, so adding documents moves none to the other split.
        text_field: JSON field or parquet column that holds the text.
        max_bytes: stop after this many bytes of text; the document that reaches it is kept whole.
        tokenizer_train_bytes: train the tokenizer on the first so many bytes of the training split.
        chunk_bytes: size of a shard file in bytes.
        overwrite: replace the shards in --out.

    Returns:
        The manifest, and whether finished shards of the same inputs and options were there already and were reused.

    Raises:
        ConfigError: inputs or options that can't be used, a split without documents, or other shards in the folder.
        RunError: an input that can't be read, or shards that can't be written.
        OSError: the same, from the file system.
    """
    _check_options(inputs, python_source, val_share, max_bytes, tokenizer_train_bytes, chunk_bytes)
    outside: list[Path] = []
    files = find_sources(inputs, outside)
    if outside:
        named = ", ".join(f"'{path}'" for path in outside[:_NAMED]) + (", ..." if len(outside) > _NAMED else "")
        print(f"not followed: {len(outside)} links that lead out of the inputs or nowhere ({named})", file=sys.stderr)
    python_files = find_python_files(python_source == "packages") if python_source != "none" else []
    counts = Counts(skipped_links=len(outside))
    python_by_content = by_content(python_files, counts)
    fingerprint = _fingerprint(files)
    python_sha256 = hashlib.sha256(b"".join(python_by_content)).hexdigest() if python_files else None
    options = {
        "python_source": python_source,
        "vocab_size": None if tokenizer else vocab_size or VOCAB_SIZE,
        "tokenizer": tokenizer,
        "val_share": val_share,
        "text_field": text_field,
        "max_bytes": max_bytes,
        "tokenizer_train_bytes": None if tokenizer else tokenizer_train_bytes,
        "chunk_bytes": chunk_bytes,
    }
    target = Path(out)

    def finished() -> Manifest | None:
        existing = None if overwrite else _existing(target, options, fingerprint, python_sha256)
        if existing is None:
            _check_replaceable(target)
        elif vocab_size is not None:
            _check_vocab_size(vocab_size, tokenizer, existing.vocab_size)
        return existing

    if existing := finished():
        return existing, True
    summary = {"kinds": {"text": len(files), "python": len(python_files)}, "python_sha256": python_sha256}
    sources = [*files, *python_by_content.values()]
    try:
        with partial_folder(target) as partial:
            if existing := finished():  # by another process, a moment ago
                return existing, True
            loaded = _tokenizer(sources, vocab_size, options)
            manifest = _write(partial, loaded, sources, counts, summary, fingerprint, options)
            publish(partial, target)
    except OSError as error:
        full = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise RunError(
            f"{error.strerror or error} at '{error.filename or target}'; {full} or choose another --out"
        ) from error
    return dataclasses.replace(manifest, folder=target), False


def split_of(digest: bytes, val_share: float) -> str:
    """The split of a document, from its digest alone: "val" for a share ``val_share`` of all digests, else "train"."""
    return "val" if int.from_bytes(digest[:8], "big") < val_share * 2**64 else "train"


def _check_options(
    inputs: list[str],
    python_source: str,
    val_share: float,
    max_bytes: int | None,
    tokenizer_train_bytes: int,
    chunk_bytes: int,
) -> None:
    if not inputs and python_source == "none":
        raise ConfigError("no input: give files, folders or globs of text, or --python_source stdlib")
    if not 0 < val_share < 1:
        raise ConfigError(f"--val_share {val_share} must lie above 0 and below 1, for example 0.01")
    for name, value, least in (
        ("max_bytes", max_bytes, 1),
        ("tokenizer_train_bytes", tokenizer_train_bytes, 1),
        ("chunk_bytes", chunk_bytes, 1024),
    ):
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value} must be at least {least}")
    if chunk_bytes >= 2**32:
        raise ConfigError(f"--chunk_bytes {chunk_bytes} must be below 2**32: LitData counts bytes in 32 bits")


def _check_vocab_size(vocab_size: int, tokenizer: str | None, found: int) -> None:
    if tokenizer and vocab_size != found:
        raise ConfigError(
            f"--vocab_size {vocab_size} is for a tokenizer to train, but tokenizer '{tokenizer}' has {found:,} ids;"
            " leave one of the two out"
        )


def _fingerprint(sources: Iterable[Source]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        try:
            status = source.path.stat()
        except OSError as error:
            raise RunError(f"can't read '{source.path}': {error.strerror}; leave it out of the inputs") from error
        digest.update(json.dumps([source.name, status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()


def _existing(target: Path, options: dict[str, Any], fingerprint: str, python_sha256: str | None) -> Manifest | None:
    """The finished shards in the target folder, if they are what was asked for; None if there are none."""
    if not (target / MANIFEST_NAME).is_file():
        return None
    manifest = Manifest.read(target)
    differences = [
        f"{name} was {manifest.options.get(name)!r}, now {value!r}"
        for name, value in options.items()
        if manifest.options.get(name) != value
    ]
    if manifest.sources_fingerprint != fingerprint:
        differences.append("the input files are others (names, sizes or modification times)")
    if manifest.sources.get("python_sha256") != python_sha256:
        differences.append("the embedded corpus' files changed (other installed packages, or another Python)")
    name = options["tokenizer"]
    if not differences and name and Path(name).exists():
        from tst_lightning.shards.tokenizer import load_tokenizer

        if load_tokenizer(name).sha256 != manifest.tokenizer_sha256:
            differences.append(f"tokenizer '{name}' has changed")
    if differences:
        raise ConfigError(
            f"'{target}' holds other shards: {'; '.join(differences)}; "
            "replace them with --overwrite, or choose another --out"
        )
    return manifest


def _check_replaceable(target: Path) -> None:
    try:
        found = set(os.listdir(target))
    except FileNotFoundError:  # or replaced by another process at this moment
        return
    except NotADirectoryError as error:
        if target.exists():
            raise ConfigError(f"--out '{target}' is a file; choose a folder") from error
        return  # a folder above it is one, as the system will say
    if found and not found.issuperset({MANIFEST_NAME, "tokenizer.json", *SPLITS}):
        raise ConfigError(
            f"--out '{target}' holds something that is no finished shards; remove it or choose another --out"
        )


def _take(documents: Iterable[Document], max_bytes: int | None) -> Iterator[Document]:
    taken = 0
    for document in documents:
        yield document
        taken += document.size
        if max_bytes is not None and taken >= max_bytes:
            return


def _batches(pieces: Iterable[tuple[str, str | None]]) -> Iterator[list[tuple[str, str | None]]]:
    batch: list[tuple[str, str | None]] = []
    characters = 0
    for split, piece in pieces:
        batch.append((split, piece))
        characters += len(piece or " ")
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _tokenizer(sources: list[Source], vocab_size: int | None, options: dict[str, Any]) -> "ShardTokenizer":
    """The tokenizer that was named, or one trained on the training split."""
    # Imported here: it takes a second, which help and refused arguments need not wait for.
    from tst_lightning.shards.tokenizer import load_tokenizer, train_tokenizer

    if name := options["tokenizer"]:
        loaded = load_tokenizer(name)
        if vocab_size is not None:
            _check_vocab_size(vocab_size, name, loaded.vocab_size)
        return loaded

    def training_text() -> Iterator[list[str]]:
        documents = _take(read_documents(sources, options["text_field"], Counts()), options["max_bytes"])
        kept = (document for document in documents if split_of(document.digest, options["val_share"]) == "train")
        pieces = (
            ("train", piece) for document in _take(kept, options["tokenizer_train_bytes"]) for piece in document.text()
        )
        for batch in _batches(pieces):
            yield [piece for _, piece in batch if piece is not None]

    print("training the tokenizer ...", file=sys.stderr)
    return train_tokenizer(training_text(), options["vocab_size"], show_progress=sys.stderr.isatty())


def _write(
    folder: Path,
    tokenizer: "ShardTokenizer",
    sources: list[Source],
    counts: Counts,
    summary: dict[str, Any],
    fingerprint: str,
    options: dict[str, Any],
) -> Manifest:
    """Fills a folder with tokenizer, shards and manifest."""
    # Imported here: litdata takes seconds.
    from tqdm import tqdm

    from tst_lightning.shards.tokenizer import encode_batches
    from tst_lightning.shards.writer import ShardWriter, dtype_for

    share, text_field, max_bytes = options["val_share"], options["text_field"], options["max_bytes"]
    tokenizer.save(folder)
    dtype = dtype_for(tokenizer.vocab_size)
    writers = {split: ShardWriter(folder / split, dtype, options["chunk_bytes"]) for split in SPLITS}
    documents_of, bytes_of = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)

    def pieces() -> Iterator[tuple[str, str | None]]:
        for document in _take(read_documents(sources, text_field, counts), max_bytes):
            split = split_of(document.digest, share)
            documents_of[split] += 1
            bytes_of[split] += document.size
            for piece in document.text():
                yield split, piece
            yield split, None

    with tqdm(desc="tokens", unit=" tokens", unit_scale=True, disable=None) as bar:
        for split, ids in encode_batches(_batches(pieces()), tokenizer.encoder(), tokenizer.end_of_document_id):
            writers[split].add(ids)
            bar.update(len(ids))
    _check_splits(documents_of, counts, share)

    splits = {}
    for split, writer in writers.items():
        chunks, sha256 = writer.finish()
        splits[split] = SplitInfo(writer.tokens, documents_of[split], bytes_of[split], chunks, sha256)
    manifest = Manifest(
        version=MANIFEST_VERSION,
        tokenizer=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        dtype=dtype,
        end_of_document_id=tokenizer.end_of_document_id,
        train=splits["train"],
        val=splits["val"],
        sources={**summary, **dataclasses.asdict(counts)},
        sources_fingerprint=fingerprint,
        options=options,
    )
    manifest.write(folder)
    return manifest


def _check_splits(documents_of: dict[str, int], counts: Counts, val_share: float) -> None:
    if not counts.documents:
        raise ConfigError(
            f"no document left of {counts.files} files: {counts.dropped_empty} empty, "
            f"{counts.skipped_undecodable} undecodable; give other inputs"
        )
    for split, how in (("train", "lower"), ("val", "raise")):
        if not documents_of[split]:
            raise ConfigError(
                f"none of {counts.documents} documents fell into the {split} split at --val_share {val_share}: "
                f"{how} --val_share or add documents"
            )

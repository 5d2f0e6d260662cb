"""Shards checked against their manifest: every byte of a chunk, every id, and LitData's index.

Shards may come from others, and disks fail. A chunk that is not what was written, or an index that would have LitData
read it in another way (pickled, compressed, encrypted), is refused by name before a token of it is used.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tst_lightning.errors import ConfigError, RunError, UserError
from tst_lightning.shards.manifest import HEADER_BYTES, SPLITS, Manifest, SplitInfo, read_json
from tst_lightning.shards.tokenizer import canonical_sha256

_READ_BYTES = 1 << 20
_MEND = "restore it, or prepare the shards again"
# What LitData writes for one flat tensor an item; 20 and 16 are its numbers for torch's dtypes.
_DATA_FORMAT = {"uint16": "no_header_tensor:20", "int32": "no_header_tensor:16"}
_DATA_SPEC = '[1, {"type": null, "context": null, "children_spec": []}]'


def check_chunk(path: Path, chunk: Mapping[str, Any], dtype: str, vocab_size: int) -> None:
    """Reads a chunk once, in bounded memory, and compares it with its entry in the manifest.

    Args:
        path: the chunk file.
        chunk: its entry: "tokens", "size_bytes" and "sha256".
        dtype: of its tokens, "uint16" or "int32".
        vocab_size: every id must be below it.

    Raises:
        RunError: the file is missing or can't be read, has another size or other bytes than were written, holds more
            or less than one item, or an id beyond the vocabulary.
    """
    try:
        size = path.stat().st_size
        if size != chunk["size_bytes"]:
            raise RunError(f"'{path}' has {size:,} bytes, {chunk['size_bytes']:,} were written: {_MEND}")
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
            digest = hashlib.sha256(header)
            outlier = _read_ids(file, digest, dtype, vocab_size)
    except FileNotFoundError as error:
        raise RunError(f"'{path}' is missing: {_MEND}") from error
    except OSError as error:
        raise RunError(f"can't read '{path}': {error.strerror or error}; {_MEND}") from error
    found = digest.hexdigest()
    if found != chunk["sha256"]:
        raise RunError(f"'{path}' is damaged (sha256 {found[:12]}..., {chunk['sha256'][:12]}... was written): {_MEND}")
    if header != np.array([1, HEADER_BYTES, size], "<u4").tobytes():
        raise RunError(f"'{path}' does not begin as a chunk of `tst prepare` does (one item, to its end): {_MEND}")
    if outlier:
        position, value = outlier
        raise RunError(
            f"'{path}' holds id {value} at token {position:,}, but the vocabulary has {vocab_size:,} ids: {_MEND}"
        )


def _read_ids(file: Any, digest: Any, dtype: str, vocab_size: int) -> tuple[int, int] | None:
    """Hashes the rest of a file; gives the first token beyond the vocabulary, as (position, id)."""
    buffer = bytearray(_READ_BYTES)
    view, ids = memoryview(buffer), np.frombuffer(buffer, np.dtype(dtype))
    unsigned = ids.view(f"u{ids.itemsize}")  # a negative id is a very large one
    outlier, position = None, 0
    while count := file.readinto(buffer):
        digest.update(view[:count])
        tokens = count // ids.itemsize
        if outlier is None and tokens and unsigned[:tokens].max() >= vocab_size:
            first = int(np.argmax(unsigned[:tokens] >= vocab_size))
            outlier = position + first, int(ids[first])
        position += tokens
    return outlier


def check_index(path: Path, split: SplitInfo, dtype: str) -> None:
    """Compares LitData's index of a split with the manifest, and its format with the only one that is written here.

    Args:
        path: the split's ``index.json``.
        split: the split's part of the manifest.
        dtype: of the tokens, "uint16" or "int32".

    Raises:
        ConfigError: it is missing or can't be parsed, lists other chunks than the manifest, or names another format,
            a compression or an encryption.
        OSError: it can't be read.
    """
    index = read_json(path, _MEND)
    config = index.pop("config", None)
    chunks = [
        {
            "filename": chunk["filename"],
            "dim": chunk["tokens"],
            "chunk_bytes": chunk["size_bytes"],
            "chunk_size": 1,
        }
        for chunk in split.chunks
    ]
    listed = index.pop("chunks", None)
    if listed != chunks:
        raise ConfigError(f"'{path}' is damaged ({_difference(listed, chunks)}): {_MEND}")
    config = config if isinstance(config, dict) else {}
    fixed = {
        "data_format": [_DATA_FORMAT[dtype]],
        "data_spec": _DATA_SPEC,
        "item_loader": "TokensLoader",
        "types": config.get("types") and "tensor",  # the older ones of LitData do without
        # Tokens that a chunk may hold: what the first does, if more follow.
        "chunk_size": split.chunks[0]["tokens"] if len(split.chunks) > 1 else config.get("chunk_size"),
    }
    for name, expected in {**dict.fromkeys(config), **fixed}.items():
        if config.get(name) != expected:
            raise ConfigError(
                f"'{path}' names {name} {str(config.get(name))[:60]!r}, shards of `tst prepare` have {expected!r}: {_MEND}"
            )
    if index != {"updated_at": split.sha256}:
        raise ConfigError(f"'{path}' is damaged (it is not stamped with the manifest's hash of the split): {_MEND}")


def _difference(listed: Any, expected: list[dict[str, Any]]) -> str:
    if not isinstance(listed, list):
        return "it lists no chunks"
    if len(listed) != len(expected):
        return f"it lists {len(listed):,} chunks, the manifest {len(expected):,}"
    first = next(i for i, (one, other) in enumerate(zip(listed, expected, strict=True)) if one != other)
    return f"chunk {first} is {str(listed[first])[:100]} there, {expected[first]} by the manifest"


def check_tokenizer(path: Path, manifest: Manifest) -> None:
    """Compares ``tokenizer.json`` with the hash in the manifest.

    Raises:
        ConfigError: it is missing, can't be parsed, or is another tokenizer.
        OSError: it can't be read.
    """
    found = canonical_sha256(json.dumps(read_json(path, _MEND)))
    if found != manifest.tokenizer_sha256:
        raise ConfigError(
            f"'{path}' is not the tokenizer that the shards were made with (sha256 {found[:12]}...,"
            f" {manifest.tokenizer_sha256[:12]}... in the manifest): {_MEND}"
        )


def verify_folder(folder: str | Path) -> list[str]:
    """Checks all that a folder of shards holds against its manifest; reads all of its bytes.

    Args:
        folder: of ``tst prepare``.

    Returns:
        Every problem found, one line each and naming its file; none means that the shards are as written.

    Raises:
        ConfigError: there is no manifest, or none that can be understood, so nothing to check with.
        OSError: the manifest can't be read.
    """
    return list(_problems(Path(folder), Manifest.parse(folder)))


def _problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    checks: list[Callable[[], None]] = [partial(check_tokenizer, folder / "tokenizer.json", manifest)]
    for split in SPLITS:
        info: SplitInfo = getattr(manifest, split)
        checks.append(partial(check_index, folder / split / "index.json", info, manifest.dtype))
        checks += [
            partial(check_chunk, folder / split / chunk["filename"], chunk, manifest.dtype, manifest.vocab_size)
            for chunk in info.chunks
        ]
    for check in checks:
        try:
            check()
        except (UserError, OSError) as error:
            yield str(error)


def extra_files(manifest: Manifest) -> list[str]:
    """What lies in the splits' folders beside index and chunks, relative to the shards' folder; nothing reads it."""
    assert manifest.folder is not None, "only a manifest that was read knows its folder"
    return [
        f"{split}/{name}"
        for split in SPLITS
        if (manifest.folder / split).is_dir()
        for name in sorted(os.listdir(manifest.folder / split))
        if name not in {"index.json", *(chunk["filename"] for chunk in getattr(manifest, split).chunks)}
    ]

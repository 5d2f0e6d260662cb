"""The manifest: what a folder of shards holds, and the proof that it was finished."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tst_lightning.corpus.documents import Counts
from tst_lightning.errors import ConfigError

MANIFEST_VERSION = 2
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "val")
_HASHES = ("content_sha256", "manifest_sha256")
# What LitData writes before the tokens of a chunk of one item: the number of items and two offsets, 4 bytes each.
HEADER_BYTES = 12
TOKEN_BYTES = {"uint16": 2, "int32": 4}
# Far above what any corpus or vocabulary needs; a larger file is no manifest, and would only fill the memory.
_LARGEST_JSON = 1 << 28
_DEEPEST_JSON = 50  # what else we do to it may recurse, in Python


@dataclass(frozen=True)
class SplitInfo:
    """One split of the corpus.

    Attributes:
        tokens: tokens, end-of-document ids included.
        documents: documents, each ended by one end-of-document id.
        bytes: UTF-8 bytes of the text.
        chunks: in order, each with "filename", "tokens", "size_bytes" and "sha256".
        sha256: hash over the bytes of the chunk files, in order.
    """

    tokens: int
    documents: int
    bytes: int
    chunks: list[dict[str, Any]]
    sha256: str

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token."""
        return self.bytes / self.tokens

    def remainder(self, block_size: int) -> int:
        """Tokens that a reader of whole blocks never sees: what each chunk holds beyond a multiple of the block size.

        Args:
            block_size: tokens per block. A chunk shorter than one block is all remainder.
        """
        return sum(chunk["tokens"] % block_size for chunk in self.chunks)


@dataclass(frozen=True)
class Manifest:
    """What a finished folder of shards holds.

    Attributes:
        version: of this format.
        tokenizer: "byte-level BPE" if trained here, else the name or path that was given.
        tokenizer_sha256: hash of the tokenizer's canonical JSON.
        vocab_size: number of ids: the largest id that the tokenizer can give, plus one.
        dtype: of the tokens in the shards, "uint16" or "int32".
        end_of_document_id: the id after each document.
        train: the training split.
        val: the validation split.
        sources: summary of what was read: kinds, files, bytes, skipped and dropped documents; and "python_sha256", hash
            over the content of the interpreter's own source files, None without them.
        sources_fingerprint: hash over names, sizes and modification times of the input files.
        options: those of `tst prepare` that decide the content.
        folder: where it was read from; not part of the content.
    """

    version: int
    tokenizer: str
    tokenizer_sha256: str
    vocab_size: int
    dtype: str
    end_of_document_id: int
    train: SplitInfo
    val: SplitInfo
    sources: dict[str, Any]
    sources_fingerprint: str
    options: dict[str, Any]
    folder: Path | None = field(default=None, compare=False)

    @property
    def content_sha256(self) -> str:
        """Hash of what a model can see: the tokens of both splits and the tokenizer."""
        return hashlib.sha256(
            "\n".join([self.train.sha256, self.val.sha256, self.tokenizer_sha256]).encode()
        ).hexdigest()

    @classmethod
    def read(cls, folder: str | Path, check_chunks: bool = True) -> "Manifest":
        """Reads a folder's manifest and checks that the files it speaks of are there, every chunk with its size.

        Args:
            folder: of ``tst prepare``.
            check_chunks: look for the chunk files; not for those that lie elsewhere and are fetched when needed.

        Raises:
            ConfigError: no folder, no manifest (half-written), a manifest of another version or that can't be
                understood, a file that is missing, or a chunk of another size than recorded.
            OSError: the manifest can't be read.
        """
        manifest = cls.parse(folder)
        manifest._check_files(Path(folder), check_chunks)
        return manifest

    @classmethod
    def parse(cls, folder: str | Path) -> "Manifest":
        """Reads a folder's manifest and checks it in itself, whatever else there is in the folder.

        Raises:
            ConfigError: as for :meth:`read`.
            OSError: the manifest can't be read.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ConfigError(f"no shards at '{folder}': run `tst prepare ... --out {folder}`")
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise ConfigError(
                f"'{folder}' is not finished (no {MANIFEST_NAME}): run `tst prepare TEXT ... --out FOLDER` to its end, and"
                " name that FOLDER here"
            )
        content = read_json(path, _again(folder))
        if content.get("version") != MANIFEST_VERSION:
            raise ConfigError(
                f"'{path}' has version {ascii(content.get('version'))[:40]}, this program reads version"
                f" {MANIFEST_VERSION}: {_again(folder)}"
            )
        try:
            # Derived from the rest; whoever mends a manifest by hand may leave them out.
            recorded = {name: content.pop(name) for name in _HASHES if name in content}
            _check_content(content)
            content |= {split: SplitInfo(**content[split]) for split in SPLITS}
            manifest = cls(**content, folder=folder)
            if recorded.items() - manifest._hashes().items():
                raise ValueError("its hash is another one: something in it was changed")
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"'{path}' can't be understood ({error}): {_again(folder)}") from error
        return manifest

    def _check_files(self, folder: Path, check_chunks: bool) -> None:
        files: list[tuple[Path, int | None]] = [(folder / "tokenizer.json", None)]
        for split in SPLITS:
            files += [(folder / split / "index.json", None)]
            if check_chunks:
                files += [
                    (folder / split / chunk["filename"], chunk["size_bytes"]) for chunk in getattr(self, split).chunks
                ]
        for path, expected in files:
            if not path.is_file():
                raise ConfigError(f"'{path}' is missing: restore it, or {_again(folder)}")
            found = path.stat().st_size
            if expected is not None and found != expected:
                raise ConfigError(
                    f"'{path}' has {found} bytes, {expected} were recorded: restore it, or {_again(folder)}"
                )

    def _content(self) -> dict[str, Any]:
        content = dataclasses.asdict(dataclasses.replace(self, folder=None))
        del content["folder"]
        return content

    def _hashes(self) -> dict[str, str]:
        """Of what the shards hold, and of the manifest itself: a slip of the disk in any of its values shows."""
        text = json.dumps(self._content(), sort_keys=True)
        return {"content_sha256": self.content_sha256, "manifest_sha256": hashlib.sha256(text.encode()).hexdigest()}

    def write(self, folder: str | Path) -> None:
        """Writes the manifest into a folder; the same content gives the same bytes.

        Raises:
            OSError: the file can't be written.
        """
        content = self._content() | self._hashes()
        Path(folder, MANIFEST_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def verify(self, split: str) -> None:
        """Reads every chunk of a split again.

        Args:
            split: "train" or "val".

        Raises:
            RunError: see :func:`tst_lightning.shards.verify.check_chunk`.
        """
        from tst_lightning.shards.verify import check_chunk

        assert self.folder is not None, "only a manifest that was read knows its folder"
        for chunk in getattr(self, split).chunks:
            check_chunk(self.folder / split / chunk["filename"], chunk, self.dtype, self.vocab_size)


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """Reads a JSON object from a file that may come from others.

    Args:
        path: the file.
        mend: ends the messages: what to do.

    Raises:
        ConfigError: it is missing or far too large, or holds no JSON object.
        OSError: it can't be read.
    """
    if not path.is_file():
        raise ConfigError(f"'{path}' is missing: {mend}")
    if path.stat().st_size > _LARGEST_JSON:
        raise ConfigError(f"'{path}' is larger than {_LARGEST_JSON:,} bytes, which no such file is: {mend}")
    try:
        content = json.loads(path.read_bytes())
        _check_depth(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' can't be understood ({error}): {mend}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' can't be understood (it holds {type(content).__name__}, no object): {mend}")
    return content


def _check_depth(content: Any) -> None:
    layer = [value for value in [content] if isinstance(value, dict | list)]
    for _ in range(_DEEPEST_JSON):
        inner = [value.values() if isinstance(value, dict) else value for value in layer]
        layer = [value for values in inner for value in values if isinstance(value, dict | list)]
    if layer:
        raise ValueError(f"it is nested more than {_DEEPEST_JSON} levels deep")


def _check_content(content: dict[str, Any]) -> None:
    """Checks types and ranges of a manifest's content, and what its parts say of each other.

    Raises:
        ValueError: says what is wrong.
    """
    fields = {field.name for field in dataclasses.fields(Manifest)} - {"folder"}
    _check_keys("", content, fields)
    for name in ("tokenizer", "sources_fingerprint"):
        _check(name, content[name], isinstance(content[name], str), "text")
    for name in ("sources", "options"):
        _check(name, content[name], isinstance(content[name], dict), "an object")
    for count in dataclasses.fields(Counts):
        _check_whole(f"sources.{count.name}", content["sources"].get(count.name, 0), 0)
    _check_hash("tokenizer_sha256", content["tokenizer_sha256"])
    dtype, end = content["dtype"], content["end_of_document_id"]
    _check("dtype", dtype, isinstance(dtype, str) and dtype in TOKEN_BYTES, f"one of {', '.join(TOKEN_BYTES)}")
    _check_whole("vocab_size", content["vocab_size"], 1)
    _check_whole("end_of_document_id", end, 0)
    _check("end_of_document_id", end, end < content["vocab_size"], f"below vocab_size {content['vocab_size']}")
    for split in SPLITS:
        _check(split, content[split], isinstance(content[split], dict), "an object")
        _check_split(split, content[split], TOKEN_BYTES[dtype])


def _check_split(split: str, info: dict[str, Any], token_bytes: int) -> None:
    _check_keys(f"{split}.", info, {field.name for field in dataclasses.fields(SplitInfo)})
    for name in ("tokens", "documents", "bytes"):
        _check_whole(f"{split}.{name}", info[name], 1)
    _check_hash(f"{split}.sha256", info["sha256"])
    _check(f"{split}.chunks", info["chunks"], isinstance(info["chunks"], list), "a list")
    names = set()
    for number, chunk in enumerate(info["chunks"]):
        where = f"{split}.chunks[{number}]"
        _check(where, chunk, isinstance(chunk, dict), "an object")
        _check_keys(f"{where}.", chunk, {"filename", "tokens", "size_bytes", "sha256"})
        # Nothing that leads out of the folder, and nothing that is another file of it.
        name = chunk["filename"]
        plain = isinstance(name, str) and re.fullmatch(r"chunk-\d+-\d+\.bin", name, re.ASCII) is not None
        _check(f"{where}.filename", name, plain and name not in names, "a name such as chunk-0-0.bin, once")
        names.add(name)
        _check_whole(f"{where}.tokens", chunk["tokens"], 1)
        expected = HEADER_BYTES + chunk["tokens"] * token_bytes
        _check(
            f"{where}.size_bytes", chunk["size_bytes"], chunk["size_bytes"] == expected, f"{expected}, by its tokens"
        )
        _check_hash(f"{where}.sha256", chunk["sha256"])
    total = sum(chunk["tokens"] for chunk in info["chunks"])
    _check(f"{split}.tokens", info["tokens"], info["tokens"] == total, f"{total}, the sum of its chunks")


def _check(name: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {ascii(value)[:60]}, not {expected}")


def _check_keys(where: str, content: dict[str, Any], expected: set[str]) -> None:
    for words, names in (("lacks", expected - content.keys()), ("has the unknown key", content.keys() - expected)):
        if names:
            raise ValueError(f"it {words} {', '.join(ascii(where + name)[:60] for name in sorted(names))}")


def _check_whole(name: str, value: Any, least: int) -> None:
    # bool is an int to Python; LitData's counters have 64 bits.
    fits = type(value) is int and least <= value < 2**63
    _check(name, value, fits, f"a whole number from {least}")


def _check_hash(name: str, value: Any) -> None:
    _check(name, value, isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None, "a SHA-256 in hex")


def _again(folder: Path) -> str:
    return f"run `tst prepare ... --out {folder} --overwrite`"

"""The manifest: what a folder of shards holds, and the proof that it was finished."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tst_lightning.errors import ConfigError, RunError

MANIFEST_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "val")


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
    def read(cls, folder: str | Path) -> "Manifest":
        """Reads a folder's manifest and checks that every chunk is there with its size.

        Raises:
            ConfigError: no folder, no manifest (half-written), a manifest of another version or that can't be
                understood, a chunk that is missing or of another size than recorded.
            OSError: the manifest can't be read.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ConfigError(f"no shards at '{folder}': run `tst prepare ... --out {folder}`")
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise ConfigError(
                f"'{folder}' is not finished (no {MANIFEST_NAME}): run `tst prepare ... --out {folder}` again"
            )
        try:
            content = json.loads(path.read_bytes())
            version = content["version"]
            if version == MANIFEST_VERSION:
                content.pop("content_sha256", None)
                content |= {split: SplitInfo(**content[split]) for split in SPLITS}
                manifest = cls(**content, folder=folder)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"'{path}' can't be understood ({error!r}): {_again(folder)}") from error
        if version != MANIFEST_VERSION:
            raise ConfigError(
                f"'{path}' has version {version!r}, this program reads version {MANIFEST_VERSION}: {_again(folder)}"
            )
        manifest._check_files(folder)
        return manifest

    def _check_files(self, folder: Path) -> None:
        files: list[tuple[Path, int | None]] = [(folder / "tokenizer.json", None)]
        for split in SPLITS:
            files += [(folder / split / "index.json", None)]
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

    def write(self, folder: str | Path) -> None:
        """Writes the manifest into a folder; the same content gives the same bytes.

        Raises:
            OSError: the file can't be written.
        """
        content = dataclasses.asdict(dataclasses.replace(self, folder=None))
        del content["folder"]
        content["content_sha256"] = self.content_sha256
        Path(folder, MANIFEST_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def verify(self, split: str) -> None:
        """Hashes every chunk of a split again; reads all of its bytes.

        Args:
            split: "train" or "val".

        Raises:
            RunError: a chunk whose content is not what was written; names the file.
            OSError: a chunk can't be read.
        """
        assert self.folder is not None, "only a manifest that was read knows its folder"
        for chunk in getattr(self, split).chunks:
            path = self.folder / split / chunk["filename"]
            with open(path, "rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
            if found != chunk["sha256"]:
                raise RunError(
                    f"'{path}' is damaged (sha256 {found[:12]}..., {chunk['sha256'][:12]}... was written): "
                    f"restore it, or {_again(self.folder)}"
                )


def _again(folder: Path) -> str:
    return f"run `tst prepare ... --out {folder} --overwrite`"

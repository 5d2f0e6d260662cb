"""Token ids -> LitData chunks of equal length.

LitData closes a chunk at the end of an item, and a reader takes whole blocks from each chunk. So documents are joined
to one stream first and handed over in items of exactly one chunk: every chunk but the last is full, an empty document
can't upset the chunking, and memory is bounded by a few chunks whatever the length of a document.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litdata.streaming.item_loader import TokensLoader
from litdata.streaming.writer import BinaryWriter

from tst_lightning.shards.manifest import HEADER_BYTES


def dtype_for(vocab_size: int) -> str:
    """The smallest dtype that holds the ids below ``vocab_size`` and that LitData and torch both read."""
    return "uint16" if vocab_size <= 65_536 else "int32"


class ShardWriter:
    """Writes one split.

    Attributes:
        tokens: written so far.
    """

    def __init__(self, folder: Path, dtype: str, chunk_bytes: int) -> None:
        """Prepares an empty split.

        Args:
            folder: is made if need be.
            dtype: of the tokens, "uint16" or "int32".
            chunk_bytes: size of each file but the last, in bytes.

        Raises:
            OSError: the folder can't be made.
        """
        self.tokens = 0
        self._folder = folder
        self._buffer = np.empty((chunk_bytes - HEADER_BYTES) // np.dtype(dtype).itemsize, dtype)
        self._filled = 0
        self._items = 0
        self._chunks: list[dict[str, Any]] = []
        self._sha256 = hashlib.sha256()
        folder.mkdir(parents=True, exist_ok=True)
        # In tokens, not bytes: LitData would count its header and warn that every chunk is too large.
        self._writer = BinaryWriter(str(folder), chunk_size=len(self._buffer), item_loader=TokensLoader())

    def add(self, ids: Sequence[int]) -> None:
        """Appends tokens to the split.

        Raises:
            OSError: a chunk can't be written.
        """
        new = np.asarray(ids, self._buffer.dtype)
        self.tokens += len(new)
        while len(new):
            part = new[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            new = new[len(part) :]
            if self._filled == len(self._buffer):
                self._hand_over()

    def _hand_over(self) -> None:
        path = self._writer.add_item(self._items, torch.from_numpy(self._buffer[: self._filled].copy()))
        self._items += 1
        self._filled = 0
        if path:  # LitData keeps an item back until the next one shows that the chunk is full
            self._record(path)

    def _record(self, path: str) -> None:
        data = Path(path).read_bytes()
        self._sha256.update(data)
        self._chunks.append(
            {
                "filename": os.path.basename(path),
                "tokens": (len(data) - HEADER_BYTES) // self._buffer.itemsize,
                "size_bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )

    def finish(self) -> tuple[list[dict[str, Any]], str]:
        """Writes the last chunk and LitData's index.

        Returns:
            The chunks, as in :class:`~tst_lightning.shards.manifest.SplitInfo`, and the hash over all of them. A split
            without a token has no chunk and no index.

        Raises:
            OSError: a file can't be written.
        """
        if self._filled:
            self._hand_over()
        if self._items:
            for path in self._writer.done():
                self._record(path)
            self._writer.merge()
            self._stamp_by_content()
        return self._chunks, self._sha256.hexdigest()

    def _stamp_by_content(self) -> None:
        # LitData stamps its index with the time, and takes the stamp as the name under which a remote folder is cached.
        path = self._folder / "index.json"
        index = json.loads(path.read_bytes())
        index["updated_at"] = self._sha256.hexdigest()
        path.write_text(json.dumps(index, sort_keys=True), encoding="utf-8")

"""Files of text -> a stream of documents, each in pieces of bounded size.

A format is one function from (path, text field) to texts, registered under its suffixes with :func:`reads`. Nothing
here holds more than one record of a file (one line of JSON, one batch of rows, one piece of plain text) in memory.
"""

import hashlib
import io
import json
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from tst_lightning.errors import ConfigError, RunError

# Long documents are cut near this length, after a line end if there is one: bounds memory, and gives every core work.
PIECE_CHARACTERS = 1 << 20
PARQUET_ROWS = 256
# A line of JSON is held whole. A longer one is no document but a damaged file, or one made to fill the memory.
LONGEST_LINE = 1 << 28

Text = Callable[[], Iterator[str]]  # one document's text in pieces; may be called more than once
Format = Callable[[Path, str], Iterator[Text]]

FORMATS: dict[str, Format] = {}


@dataclass(frozen=True)
class Source:
    """One file to read.

    Attributes:
        path: where it is.
        name: how it is known to fingerprints: its path relative to the folder that was given, or its file name.
    """

    path: Path
    name: str


@dataclass
class Counts:
    """What was read so far.

    Attributes:
        files: read, those that gave no document included.
        documents: that were kept.
        bytes: UTF-8 bytes of the text of the documents that were kept.
        skipped_undecodable: documents that are no text.
        skipped_links: links that lead out of the inputs, or nowhere; not followed.
        dropped_duplicates: copies of a file already met.
        dropped_empty: blank documents.
    """

    files: int = 0
    documents: int = 0
    bytes: int = 0
    skipped_undecodable: int = 0
    skipped_links: int = 0
    dropped_duplicates: int = 0
    dropped_empty: int = 0


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        digest: 16 bytes, a hash of its text; the same text has the same digest in every format.
        size: UTF-8 bytes of its text.
        text: gives the text in pieces of about ``PIECE_CHARACTERS``.
    """

    digest: bytes
    size: int
    text: Text


def reads(*suffixes: str) -> Callable[[Format], Format]:
    """Registers a function as the reader of the files with these suffixes."""

    def register(function: Format) -> Format:
        FORMATS.update(dict.fromkeys(suffixes, function))
        return function

    return register


def _cut(handle: TextIO) -> Iterator[str]:
    while piece := handle.read(PIECE_CHARACTERS):
        yield piece + handle.readline(PIECE_CHARACTERS)


def _pieces_of_string(text: str) -> Iterator[str]:
    return iter([text]) if len(text) <= PIECE_CHARACTERS else _cut(io.StringIO(text, newline=""))


def _pieces_of_file(path: Path, encoding: str) -> Iterator[str]:
    with open(path, encoding=encoding, newline="") as handle:
        yield from _cut(handle)


@reads(".txt", ".text", ".md", ".rst")
def plain_text(path: Path, text_field: str) -> Iterator[Text]:
    """One file is one document, in UTF-8."""
    yield partial(_pieces_of_file, path, "utf-8-sig")


@reads(".py")
def python_text(path: Path, text_field: str) -> Iterator[Text]:
    """One file is one document, in the encoding that Python would read it in (PEP 263)."""

    def pieces() -> Iterator[str]:
        with open(path, "rb") as handle:
            try:
                encoding, _ = tokenize.detect_encoding(handle.readline)
            except SyntaxError as error:  # an unknown or contradicted coding line
                raise UnicodeError(str(error)) from error
        yield from _pieces_of_file(path, encoding)

    yield pieces


def _text_of(value: Any, where: str, text_field: str) -> Text:
    if value is not None and not isinstance(value, str):
        raise ConfigError(
            f"{where}: field '{text_field}' holds {type(value).__name__} {str(value)[:40]!r}, not text; "
            "name a field of text with --text_field"
        )
    return partial(_pieces_of_string, value or "")


@reads(".jsonl", ".jsonl.gz", ".jsonl.zst")
def json_lines(path: Path, text_field: str) -> Iterator[Text]:
    """One JSON object a line, one document in each; blank lines are passed over, null is an empty document."""
    import pyarrow

    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    with io.BufferedReader(pyarrow.input_stream(str(path), compression=compression)) as lines:
        for number, line in enumerate(iter(partial(lines.readline, LONGEST_LINE + 1), b""), 1):
            where = f"{path}:{number}"
            if len(line) > LONGEST_LINE:
                raise RunError(
                    f"{where}: the line is longer than {LONGEST_LINE:,} bytes, the most for one document of JSON;"
                    " cut it, or leave the file out of the inputs"
                )
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested to fill the stack
                raise RunError(f"{where}: not a line of JSON ({error}); mend or remove the line") from error
            if not isinstance(row, dict):
                raise RunError(f"{where}: holds {type(row).__name__}, not a JSON object; write one object a line")
            if text_field not in row:
                raise _no_field(where, "field", text_field, row)
            yield _text_of(row[text_field], where, text_field)


@reads(".parquet")
def parquet_rows(path: Path, text_field: str) -> Iterator[Text]:
    """One row, one document; rows are streamed in batches, null is an empty document."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise _no_field(str(path), "column", text_field, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _text_of(value, f"{path}: row {number}", text_field)
    except pyarrow.ArrowInvalid as error:
        raise RunError(f"can't read '{path}': {str(error).splitlines()[0]}; mend it or leave it out") from error


def _no_field(where: str, kind: str, text_field: str, fields: Iterable[str]) -> ConfigError:
    present = ", ".join(f"'{name}'" for name in fields) or "none"
    return ConfigError(
        f"{where}: no {kind} '{text_field}'; there are: {present}; name the one to read with --text_field"
    )


def format_of(name: str) -> Format | None:
    """The reader registered for a file name's suffix, or None."""
    name = name.lower()
    return next((read for suffix, read in FORMATS.items() if name.endswith(suffix)), None)


def unreadable(path: Any, error: OSError) -> RunError:
    """The error that names a file which can't be read, with the system's reason."""
    return RunError(f"can't read '{path}': {error.strerror or error}; make it readable or leave it out of the inputs")


def read_documents(sources: Iterable[Source], text_field: str, counts: Counts) -> Iterator[Document]:
    """Reads the documents of the sources, in order.

    Blank documents are dropped, undecodable ones skipped; both are counted.

    Args:
        sources: the files.
        text_field: the JSON field or parquet column that holds the text.
        counts: is updated while reading.

    Yields:
        The documents.

    Raises:
        ConfigError: the text field is missing or holds no text.
        RunError: a file can't be read, or isn't what its suffix says.
    """
    for source in sources:
        counts.files += 1
        read = format_of(source.path.name)
        assert read is not None, source  # find_sources lists no others
        try:
            for text in read(source.path, text_field):
                digest, size, blank = hashlib.blake2b(digest_size=16), 0, True
                try:
                    for piece in text():
                        data = piece.encode()  # fails on lone surrogates, which JSON can spell
                        digest.update(data)
                        size += len(data)
                        blank = blank and not piece.strip()
                except UnicodeError:
                    counts.skipped_undecodable += 1
                    continue
                if blank:
                    counts.dropped_empty += 1
                    continue
                counts.documents += 1
                counts.bytes += size
                yield Document(digest.digest(), size, text)
        except OSError as error:
            raise unreadable(source.path, error) from error

"""Files, folders and globs -> the files to read, none of them outside of what was named."""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tst_lightning.corpus import documents
from tst_lightning.corpus.documents import Source, format_of, unreadable
from tst_lightning.errors import ConfigError


def once(sources: Iterable[Source]) -> list[Source]:
    """Drops what is met again under another path: links, and folders within folders.

    Raises:
        RunError: a file can't be looked up.
    """
    found: dict[tuple[int, int], Source] = {}
    for source in sources:
        try:
            status = source.path.stat()
        except OSError as error:
            raise unreadable(source.path, error) from error
        found.setdefault((status.st_dev, status.st_ino), source)
    return list(found.values())


def walk(folder: Path, skip: Collection[str] = ()) -> Iterator[Source]:
    """The files below a folder that have a known suffix, in sorted order; hidden files and folders are passed over.

    Links to files are listed, links to folders are not gone into.

    Args:
        folder: where to start.
        skip: names of folders to pass over.

    Raises:
        RunError: a folder can't be listed.
    """
    for parent, _, files in _folders(folder, skip):
        for name in files:
            if format_of(name):
                path = Path(parent, name)
                yield Source(path, path.relative_to(folder).as_posix())


def _folders(folder: Path, skip: Collection[str] = ()) -> Iterator[tuple[str, list[str], list[str]]]:
    def refuse(error: OSError) -> None:
        raise unreadable(error.filename, error)

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skip)
        yield parent, folders, sorted(name for name in files if not name.startswith("."))


class _Boundary:
    """A folder that nothing found below it may lead out of, as a link from others could (to keys, to devices)."""

    def __init__(self, folder: Path, outside: list[Path]) -> None:
        self._root = os.path.realpath(folder)
        self._outside = outside

    def holds(self, path: Path) -> bool:
        """Whether the path ends, all links followed, within the folder; else it is noted."""
        try:
            real = os.path.realpath(path, strict=True)
        except OSError:  # it leads nowhere, or round in a circle
            real = ""
        if real == self._root or real.startswith(os.path.join(self._root, "")):
            return True
        if path not in self._outside:
            self._outside.append(path)
        return False

    def walk(self, folder: Path) -> Iterator[Source]:
        """As :func:`walk`, for what lies within; of links to folders, those that lead out are noted."""
        for parent, folders, files in _folders(folder):
            for name in folders:
                if os.path.islink(os.path.join(parent, name)):
                    self.holds(Path(parent, name))
            for name in files:
                path = Path(parent, name)
                if format_of(name) and self.holds(path) and path.is_file():
                    yield Source(path, path.relative_to(folder).as_posix())


def _matches(given: str) -> tuple[Path, list[Path]]:
    """The folder that a glob starts from, and what it matches there; hidden names only if it spells their dot."""
    parts = Path(given).parts
    plain = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), len(parts))
    root, pattern = Path(*parts[:plain]), parts[plain:]
    if not pattern or not root.is_dir():
        return root, []
    try:
        # Unlike glob.glob, this doesn't go through links for "**", of which two that lead round take forever.
        found = sorted(root.glob("/".join(pattern)), key=str)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"input '{given}' is no glob that can be used: {error}") from error
    if not any(part.startswith(".") for part in pattern):
        found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return root, found


def find_sources(inputs: Iterable[str], outside: list[Path] | None = None) -> list[Source]:
    """Resolves files, folders and globs, in the order given; a file that is met twice counts once.

    What is named itself may be a link. Within a folder, and among the matches of a glob, links that lead out of it are
    not followed.

    Args:
        inputs: files, folders and globs.
        outside: is filled with the links that were not followed.

    Raises:
        ConfigError: an input that matches nothing, a named file of unknown suffix, or a folder or glob without any file
            of a known suffix.
        RunError: a folder can't be listed, or a file looked up.
    """
    known = ", ".join(documents.FORMATS)
    found: list[Source] = []
    outside = [] if outside is None else outside
    for given in inputs:
        path = Path(given)
        before = len(outside)
        sources: list[Source] = []
        if path.is_dir():
            sources += _Boundary(path, outside).walk(path)
        elif path.exists():
            if not path.is_file():
                raise ConfigError(
                    f"input '{given}' is no regular file, and files are read twice; write it to one first"
                )
            sources += [Source(path, path.name)] if format_of(path.name) else []
        else:
            root, matches = _matches(given)
            if not matches:
                raise ConfigError(f"input '{given}' matches no file or folder; check the path")
            boundary = _Boundary(root, outside)
            for match in filter(boundary.holds, matches):
                if match.is_dir():
                    sources += boundary.walk(match)
                elif format_of(match.name) and match.is_file():
                    sources.append(Source(match, match.name))
        if not sources:
            what = (
                f"input '{given}' has no known suffix" if path.is_file() else f"no file of '{given}' has a known suffix"
            )
            links = f" ({len(outside) - before} links that lead out of it aside)" if len(outside) > before else ""
            raise ConfigError(f"{what}{links}; known are {known}")
        found += sources
    return once(found)

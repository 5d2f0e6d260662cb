"""The corpus that every machine has: the Python source files of the running interpreter.

Which files there are depends on the Python version (and on the installed packages, if asked for), not on where they are
installed: names are relative, and the order is that of a hash of the content, which mixes the topics as well.
"""

import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from tst_lightning.corpus.documents import Counts, Source, once, walk

# Installed packages may lie below the standard library's folder.
_SKIPPED = {
    "stdlib": ("site-packages", "dist-packages", "__pycache__"),
    "platstdlib": ("site-packages", "dist-packages", "__pycache__"),
    "purelib": ("__pycache__",),
    "platlib": ("__pycache__",),
}


def find_python_files(packages: bool) -> list[Source]:
    """Lists the standard library's source files and, if asked, those of the installed packages, sorted by name.

    Args:
        packages: also list what is installed in the running environment.
    """
    found: list[Source] = []
    for name in ["stdlib", "platstdlib"] + (["purelib", "platlib"] if packages else []):
        folder = Path(sysconfig.get_path(name))
        if folder.is_dir():
            found += [source for source in walk(folder, skip=_SKIPPED[name]) if source.path.suffix == ".py"]
    return sorted(once(found), key=lambda source: source.name)


def order_by_content(sources: Iterable[Source], counts: Counts) -> list[Source]:
    """Sorts files by the SHA-256 of their bytes and drops copies of a file already met.

    Args:
        sources: the files; each is read once.
        counts: its ``dropped_duplicates`` is updated.
    """
    first: dict[bytes, Source] = {}
    for source in sources:
        with open(source.path, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").digest()
        if digest in first:
            counts.dropped_duplicates += 1
        else:
            first[digest] = source
    return [first[digest] for digest in sorted(first)]

"""The corpus that every machine has: the Python source files of the running interpreter.

Which files there are depends on the Python version (and on the installed packages, if asked for), not on where they are
installed: names are relative, and the order is that of a hash of the content, which mixes the topics as well. This
project and what an editable installation leaves behind are no part of it: they differ from clone to clone.
"""

import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from tst_lightning.corpus.documents import Counts, Source
from tst_lightning.corpus.inputs import once, walk

# Installed packages may lie below the standard library's folder.
_SKIPPED = {
    "stdlib": ("site-packages", "dist-packages", "__pycache__"),
    "platstdlib": ("site-packages", "dist-packages", "__pycache__"),
    "purelib": ("tst_lightning", "__pycache__"),
    "platlib": ("tst_lightning", "__pycache__"),
}
_EDITABLE = "__editable__"  # setuptools' finders of editable packages, which hold the clone's path


def find_python_files(packages: bool) -> list[Source]:
    """Lists the standard library's source files and, if asked, those of the installed packages, sorted by name.

    Args:
        packages: also list what is installed in the running environment.
    """
    found: list[Source] = []
    for name in ["stdlib", "platstdlib"] + (["purelib", "platlib"] if packages else []):
        folder = Path(sysconfig.get_path(name))
        if folder.is_dir():
            found += [
                source
                for source in walk(folder, skip=_SKIPPED[name])
                if source.path.suffix == ".py" and not source.path.name.startswith(_EDITABLE)
            ]
    return sorted(once(found), key=lambda source: source.name)


def by_content(sources: Iterable[Source], counts: Counts) -> dict[bytes, Source]:
    """Sorts files by the SHA-256 of their bytes; drops empty files, and copies of a file already met.

    Args:
        sources: the files; each is read once.
        counts: is updated by the files dropped.

    Returns:
        Digest to file, in the order of the digests.

    Raises:
        OSError: a file can't be read.
    """
    first: dict[bytes, Source] = {}
    for source in sources:
        data = source.path.read_bytes()
        digest = hashlib.sha256(data).digest()
        if data and digest not in first:
            first[digest] = source
            continue
        counts.files += 1
        counts.dropped_duplicates += bool(data)
        counts.dropped_empty += not data
    return dict(sorted(first.items()))

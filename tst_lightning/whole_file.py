"""Small files of a run, written whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes beside the file, syncs, and replaces it: a killed run or a full disk leaves the previous one as it was.

    Args:
        path: of the file.
        content: its bytes, or text to be written as UTF-8.

    Raises:
        OSError: the file system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.unlink(missing_ok=True)  # it may be a link to somewhere else, in a folder from others
    try:
        with open(beside, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise

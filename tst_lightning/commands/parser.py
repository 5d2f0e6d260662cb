"""Argument parsers whose errors are one line."""

import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from tst_lightning.errors import ConfigError

# What jsonargparse says about a value that fits none of several types, beside the reasons.
_ASIDE = re.compile(
    r"Subtypes: |Errors:$|Given value type: |Subclass types expect"
    r"|- (a class path|a dict|Expected a (NoneType|path|dot import)|Does not validate|$)"
)
_CLEARER = {
    r"\s*Does not validate against any of the Union subtypes": "",
    r'Parser key "([^"]+)"': r"\1",
    r"Problem with given class_path '([^']+)'": r"\1",
    r"Type typing\.Callable\S* \S+ expects a function or a callable class: ": "",
    r"Group '([^']+)' does not accept option '([^']+)'": r"Option '\1.\2' is not accepted",
    r"Expected an? ": "expected ",
}
_LONGEST_VALUE = 80


def one_line(message: str) -> str:
    """Folds a parser's many-line message into one line that keeps what was wrong, the value, and what is accepted."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    message = re.sub(r"<class '([^']+)'>", r"\1", message)
    lines = [line for line in map(str.strip, message.splitlines()) if line and not _ASIDE.match(line)]
    if any(line.startswith("- ") and not line.startswith("- Not a valid subclass") for line in lines):
        lines = [line for line in lines if not line.startswith("- Not a valid subclass")]
    folded = ""
    for previous, line in zip(["", *lines], lines, strict=False):
        both = line.startswith("- ") and previous.startswith("- ") and not previous.endswith(":")
        folded += (" or " if both else " ") + line.removeprefix("- ")
    folded = folded.strip()
    for pattern, clearer in _CLEARER.items():
        folded = re.sub(pattern, clearer, folded)
    # Of a long value, such as a whole list of callbacks, the reason has named the part that matters.
    folded = re.sub(
        r"(?:\. Got| Given) value: (.*?)(?=(?: Given value: )|$)",
        lambda found: f", got {found[1]}" if len(found[1]) <= _LONGEST_VALUE else "",
        folded,
    )
    return re.sub(r":\.? ", ": ", folded)


class OneLineParser(ArgumentParser):
    """A jsonargparse parser that raises :class:`ConfigError` in place of printing its usage and exiting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the parser's complaint as a user error.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{one_line(message)} (see `{self.prog} --help`)") from ex

"""Argument parsers whose errors are one line."""

import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from tst_lightning.errors import ConfigError


def one_line(message: str) -> str:
    """Folds a parser's many-line message into one line that keeps what was wrong, the value, and what is accepted."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    message = re.sub(r"<class '([^']+)'>", r"\1", message)
    parts = [part.strip() for part in message.splitlines() if part.strip()]
    return re.sub(r":\.? ", ": ", " ".join(parts))


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

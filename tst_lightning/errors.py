"""Errors that are the user's to mend: one message that says what was wrong, the value, and what to do.

Everything else that is raised is a defect of this project and keeps its traceback.
"""


class UserError(Exception):
    """A condition that the user can mend; printed as one line, without a traceback.

    Attributes:
        exit_code: what the process exits with.
    """

    exit_code = 1


class ConfigError(UserError):
    """What was asked for can't be done as asked: options, YAML values, or inputs that do not fit together (exit 2)."""

    exit_code = 2


class RunError(UserError):
    """Something went wrong on the way: unreadable file, full disk, damaged shards, non-finite loss (exit 1)."""


class Stopped(UserError):
    """The run was asked to stop and did so with a checkpoint (exit 128 + signal number, the shell's convention)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number

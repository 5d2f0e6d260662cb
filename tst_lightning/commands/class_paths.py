"""What a configuration may name as a class.

Its values come from others at times. The parser checks most against the type that is expected there, but where any
callable is (an optimizer, a hook), or nothing is said, it would call whatever function is named with whatever arguments:
``os.system`` with a command.
"""

import pydoc
import sys
from typing import Any

from tst_lightning.errors import ConfigError


def check_class_paths(config: Any, key: str = "") -> None:
    """Refuses every ``class_path`` that names a function, or something of Python's standard library.

    Args:
        config: a parsed configuration, before anything in it is built.
        key: where it stands, for the message.

    Raises:
        ConfigError: names the key and what it names.
    """
    if isinstance(config, list | tuple):
        config = dict(enumerate(config))
    if callable(config) and _of_python_itself(config):  # a hook that is named, to be called later
        raise ConfigError(f"{key}: {config!r} is of Python's own library, which is no part of a run")
    if not isinstance(config, dict):
        return
    path = config.get("class_path")
    if isinstance(path, str):
        try:
            named = pydoc.locate(path)
        except pydoc.ErrorDuringImport as error:
            raise ConfigError(f"{key}.class_path: {str(error).splitlines()[0]}") from error
        if named is not None and not isinstance(named, type):
            raise ConfigError(f"{key}.class_path: '{path}' is no class, and is not called; name a class")
        if _of_python_itself(named):
            raise ConfigError(f"{key}.class_path: '{path}' is of Python's own library, which is no part of a run")
    for name, inner in config.items():
        check_class_paths(inner, f"{key}.{name}".lstrip("."))


def _of_python_itself(named: Any) -> bool:
    """Whether a class or function is of the standard library, under whatever name it was reached."""
    return str(getattr(named, "__module__", None)).partition(".")[0] in sys.stdlib_module_names

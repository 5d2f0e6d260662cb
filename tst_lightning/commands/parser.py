"""Argument parsers whose errors are one line."""

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

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
    r"typing\.Literal\[([^\]]*)\]": r"one of \1",
    r"expected dict\b": "expected a mapping",
    r"full_key: (\S+) object_type=\w+": r"(for \1)",
    r"Not a valid subclass of (\w+)": r"expected a \1, given by class_path and init_args",
    r"expected dot import path string:\s*": "expected a class such as package.Class, got ",
    r"Unexpected import path format: ": "expected a class such as package.Class, got ",
    r"expected instantiatable class, but (\S+) is abstract": r"\1 is abstract; name one of its subclasses by class_path",
    r"Key must be a string, got: (.*?)\.?(?= |$)": r"the key \1 is no text to YAML; put it in quotes, or remove it",
}
_LONGEST_VALUE = 80
_LONGEST_WORD = 200


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
    folded = re.sub(
        r":\.? ", ": ", re.sub(r", got (?:Namespace|NestedArg)\(.*?\)(?= |$)|\.? Given value:$", "", folded)
    )
    folded = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda found: f"{found[0][:40]}...", folded)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in folded)


def check_class_specs(key: str, value: Any) -> None:
    """Checks the form of every ``{class_path: ..., init_args: ...}`` in an option's value.

    Args:
        key: of the option.
        value: as read from YAML.

    Raises:
        TypeError: a class_path that is no text, arguments that are no mapping; names its key.
    """
    if isinstance(value, list):
        for index, inner in enumerate(value):
            check_class_specs(f"{key}.{index}", inner)
    if not isinstance(value, dict):
        return
    if "class_path" in value:
        path = value["class_path"]
        if not isinstance(path, str):
            raise TypeError(f"{key}.class_path: expected a class such as package.Class, got {shown(path)}")
        if beside := value.keys() - {"class_path", "init_args", "dict_kwargs", "__path__"}:
            names = shown(", ".join(sorted(map(str, beside))))
            raise TypeError(
                f"{key}: not accepted beside class_path: {names}; put the class's arguments below init_args"
            )
        for name in ("init_args", "dict_kwargs"):
            if not isinstance(value.get(name, {}), dict | Namespace):
                raise TypeError(f"{key}.{name}: expected a mapping of the class's arguments, got {shown(value[name])}")
    for name, inner in value.items():
        check_class_specs(f"{key}.{name}", inner)


def shown(value: Any) -> str:
    """A value as it appears in a message: itself where it is short."""
    text = "null" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:40]}... ({type(value).__name__})"


def nearest(message: str, actions: Iterable[argparse.Action]) -> str:
    """The option that was probably meant, where a parser's complaint is about one that there is not.

    Args:
        message: the complaint.
        actions: of the parser.

    Returns:
        What to add to the complaint; empty where nothing is near.
    """
    if message.startswith("unrecognized arguments:"):
        names = re.findall(r" (--[^\s=]+)", message)
        known = [option for action in actions for option in action.option_strings]
    # What is said of an option of one object's arguments, further within, that object's own parser has looked for.
    elif found := re.match(r"(?:Group '(?P<group>[^']+)' does not accept o|O)ption '(?P<name>[^']+)'", message):
        names = [".".join(filter(None, (found["group"], found["name"])))]
        known = [action.dest for action in actions]
    else:
        return ""
    near = [each for name in names for each in difflib.get_close_matches(name, known, 1, 0.8)]
    return f"; is it '{near[0]}'?" if near else ""


class OneLineParser(ArgumentParser):
    """A jsonargparse parser that raises :class:`ConfigError` in place of printing its usage and exiting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the parser's complaint as a user error.

        Raises:
            ConfigError: always.
        """
        message += nearest(message, self._actions)
        raise ConfigError(f"{one_line(message)} (see `{self.prog} --help`)") from ex

"""A configuration file before its options are looked at: text, YAML, and a mapping in which each key stands once.

YAML itself lets a key stand twice and takes the last; it lets a value hold itself, or grow a billionfold through aliases.
Each is refused here with its line, in place of what it would do to the parser.
"""

from pathlib import Path
from typing import Any

import yaml

from tst_lightning.errors import ConfigError

_DEEPEST = 50
_MOST_VALUES = 100_000


def check_config_file(path: Path) -> dict[str, Any]:
    """Reads a YAML file for its form alone.

    Args:
        path: of an existing file.

    Returns:
        What it holds, by the rules of plain YAML.

    Raises:
        ConfigError: it is no UTF-8 text, no YAML, no mapping, empty, too deep or too large; a key is given twice or a
            value can't be what its tag says. Names file, line and column.
        OSError: it can't be read.
    """
    content = path.read_bytes()
    try:
        loader = yaml.SafeLoader(content.decode("utf-8"))
        root = loader.get_single_node()
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start:,}"
        raise ConfigError(f"'{path}' is no UTF-8 text ({found}); save it as UTF-8") from error
    except yaml.reader.ReaderError as error:
        found = f"character U+{error.character:04X} at {error.position:,}"
        raise ConfigError(f"'{path}' can't be read as YAML: {found} is not allowed in it; remove it") from error
    except yaml.MarkedYAMLError as error:
        raise _refusal(path, error.problem_mark, f"no YAML: {error.problem}", error.context) from error
    except RecursionError as error:
        raise ConfigError(f"'{path}' is nested too deeply; {_DEEPEST} levels are allowed") from error
    if root is None:
        raise ConfigError(f"'{path}' is empty; it must hold options, such as `data:` with `shards: FOLDER` below")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"'{path}' holds no mapping of options; it must hold such as `data:` with `shards: FOLDER` below"
        )
    _Walk(path, loader).size(root, 0)
    try:
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise _refusal(path, error.problem_mark, str(error.problem)) from error


def _refusal(path: Path, mark: yaml.Mark | None, problem: str, context: str | None = None) -> ConfigError:
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return ConfigError(f"'{path}'{where}: {problem}{f' ({context})' if context else ''}; mend it there or just before")


class _Walk:
    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self.path, self.loader = path, loader
        self._sizes: dict[yaml.Node, int | None] = {}  # None while a node's own values are looked at

    def size(self, node: yaml.Node, depth: int) -> int:
        """Number of values in a node, those behind aliases counted each time."""
        if node in self._sizes:
            known = self._sizes[node]
            if known is None:
                raise _refusal(self.path, node.start_mark, "this value holds itself, by an alias")
            return known
        if depth > _DEEPEST:
            raise _refusal(self.path, node.start_mark, f"nested too deeply; {_DEEPEST} levels are allowed")
        self._sizes[node] = None
        size = 1
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            size += sum(self.size(value, depth + 1) for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(self.size(value, depth + 1) for value in node.value)
        else:
            self._check_scalar(node)
        if size > _MOST_VALUES:
            raise _refusal(self.path, node.start_mark, f"more than {_MOST_VALUES:,} values, aliases counted each time")
        self._sizes[node] = size
        return size

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal(self.path, key.start_mark, "a key must be text")
            if key.value in lines and key.value != "<<":
                twice = f"'{key.value[:80]}' is given a second time, first in line {lines[key.value]}"
                raise _refusal(self.path, key.start_mark, twice)
            lines[key.value] = key.start_mark.line + 1

    def _check_scalar(self, node: yaml.Node) -> None:
        if "\0" in node.value:
            raise _refusal(self.path, node.start_mark, "a NUL character in a value")
        try:
            self.loader.construct_object(node)
        except yaml.MarkedYAMLError as error:
            raise _refusal(self.path, node.start_mark, str(error.problem)) from error
        except ValueError as error:
            kind = node.tag.rpartition(":")[2]
            value = f"'{node.value[:80]}' is no {kind} ({str(error).split(';')[0]})"
            raise _refusal(self.path, node.start_mark, value) from error

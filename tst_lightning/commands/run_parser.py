"""The parser of ``tst fit`` and its kin: Lightning's, with errors of one line that name the option they are about."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from tst_lightning.commands.config_file import check_config_file
from tst_lightning.commands.parser import check_class_specs, nearest, one_line, shown
from tst_lightning.errors import ConfigError

# Mappings of the user's own names to objects, and what each object is.
_NAMED = {"loggers": "a Logger", "callbacks": "a Callback", "model.phases": "a PhaseStrategy"}
_GROUPS = ("model", "data", "trainer")


class RunParser(LightningArgumentParser):
    """Lightning's parser, which raises :class:`ConfigError` in place of printing its usage and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the parser's complaint as a user error.

        Raises:
            ConfigError: always, but for the parser of one object's arguments: the outer one says where that stands.
        """
        message += nearest(message, self._actions)
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigError(f"{one_line(message)} (see `{self.prog} --help`)") from ex

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """As inherited, once the file's form has been checked.

        Raises:
            ConfigError: it is no YAML mapping of options, or is one that the inherited method stumbles over.
        """
        content = check_config_file(Path(path))
        for key in ("config", "print_config"):
            if key in content:
                raise ConfigError(f"'{path}' has '{key}' at its root, which is for the command line alone; remove it")
        for key in _GROUPS:
            if not isinstance(content.get(key, {}), dict | str):
                raise ConfigError(f"{key}: expected a mapping of options, got {shown(content[key])} (in '{path}')")
        return super().parse_path(path, *args, **kwargs)

    def _check_value_key(
        self, action: argparse.Action, value: Any, key: str, cfg: Namespace | None, append: bool = False
    ) -> Any:
        """As inherited; an error within a mapping of named objects names the one that it is about."""
        kind = getattr(action, "_typehint", None)
        if value is None and action.default is not None and kind in (int, float, bool, str):
            raise TypeError(f'Parser key "{key}": expected {kind.__name__}, got null')
        if key in _NAMED and isinstance(value, dict) and "class_path" in value:
            raise TypeError(f"{key} maps names to objects; class_path stands below a name: {key}.NAME.class_path")
        check_class_specs(key, value)
        if key not in _NAMED or not isinstance(value, dict):
            try:
                return super()._check_value_key(action, value, key, cfg, append)
            except OverflowError as error:
                raise TypeError(f'Parser key "{key}": {error}') from error
        known = (cfg.get(key) if cfg else None) or {}
        for name, inner in value.items():
            if isinstance(inner, dict) and "class_path" not in inner and name not in known:
                keys = ", ".join(map(str, inner)) or "none"
                raise TypeError(f"{key}.{name} has no class_path, which {_NAMED[key]} needs; its keys: {keys}")
        try:
            return super()._check_value_key(action, value, key, cfg, append)
        except (TypeError, ValueError, OverflowError):
            for name, inner in value.items():
                try:
                    super()._check_value_key(action, {name: inner}, key, cfg, append)
                except (TypeError, ValueError, OverflowError) as error:
                    raise TypeError(str(error).replace(f'"{key}"', f'"{key}.{name}"', 1)) from error
            raise

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        """As YAML in which the run's folder stands once, so that another --run_dir moves all of the run."""
        text = super().dump(namespace, *args, **kwargs)
        if not self.exit_on_error or not namespace.get("run_dir"):
            return text
        config = _unresolved(yaml.safe_load(text), namespace.run_dir) | {"run_dir": namespace.run_dir}
        return yaml.safe_dump(config, sort_keys=False)


def _unresolved(value: Any, run_dir: str) -> Any:
    """Puts ``${run_dir}`` back where its value begins a string."""
    if isinstance(value, dict):
        return {key: _unresolved(inner, run_dir) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unresolved(inner, run_dir) for inner in value]
    if isinstance(value, str) and (value == run_dir or value.startswith(f"{run_dir}/")):
        return "${run_dir}" + value.removeprefix(run_dir)
    return value

"""A sweep as it is asked for, by a YAML file and on the command line, checked before anything is started."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tst_lightning.errors import ConfigError
from tst_lightning.sweep.cases import CONFIG, Case, Settings, check_unique, expand, make_baselines, make_cases

KEYS = ("fit", "baseline", "set", "grid", "list")
# What the sweep itself gives to each run, or what would keep a run from training.
_TAKEN = {"run_dir", "ckpt_path", "print_config"}
_KEY = re.compile(r"\w+(\.\w+)*")
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # which YAML 1.1 takes for text where it has no point


@dataclass(frozen=True)
class Plan:
    """What a sweep runs.

    Attributes:
        out: folder of the sweep; each run's is in it, under the case's name.
        cases: the baseline's first.
    """

    out: Path
    cases: tuple[Case, ...]

    def run_dir(self, case: Case) -> Path:
        """Folder of a case's run."""
        return self.out / case.name


def make_plan(out: str, content: dict[str, Any], where: str) -> Plan:
    """Checks what was asked for and lays out its cases.

    Args:
        out: folder of the sweep.
        content: by the keys of a sweep's YAML.
        where: it is from, for messages.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind, a key given twice, no configuration, a file that is not
            there, nothing to sweep, the same case twice, bag sizes that ``data.block_rows`` is no multiple of, or a
            baseline with another ``data.block_rows``.
    """
    if unknown := [key for key in content if key not in KEYS]:
        raise ConfigError(f"'{unknown[0]}' is no key of a sweep (in {where}); the keys are {', '.join(KEYS)}")
    configs, baseline = (_files(key, content.get(key), where) for key in ("fit", "baseline"))
    fixed = _settings("set", content.get("set"), where)
    grid = _settings("grid", content.get("grid"), where)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"grid '{key}': expected a list of values, got {values!r} (in {where}); write dotted keys"
            )
    given = [*fixed, *(part for key in grid for part in key.split(","))]
    if twice := [key for key in given if given.count(key) > 1]:
        raise ConfigError(
            f"'{twice[0]}' is given twice by set and grid, in {where} or beside it; it has either one value for every run"
            " or a list to try: leave one out"
        )
    listed = content.get("list") or []
    if not isinstance(listed, list):
        raise ConfigError(f"list: expected a list of cases, each a mapping of keys to values, got {listed!r}")
    swept = expand(grid, (_settings("list", each, where) for each in listed))
    if CONFIG in fixed:
        raise ConfigError(f"set: '{CONFIG}' would add files to every run (in {where}); name them under fit")
    for settings in swept:
        _files(CONFIG, settings.get(CONFIG), where)
    cases = make_cases(swept, configs, fixed)
    if not configs:
        raise ConfigError("no configuration is given; name one of `tst fit`, such as --fit configs/quickstart/tst.yaml")
    if not cases:
        raise ConfigError(
            "there is nothing to sweep; give values, such as --grid model.optimizer.init_args.lr=1e-3,2e-3"
        )
    if baseline:
        cases = [*make_baselines(cases, baseline), *cases]
        check_unique(cases)
    if Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    _check_block_rows(cases)
    return Plan(Path(out), tuple(cases))


def pairs(option: str, words: Sequence[str]) -> Settings:
    """Reads KEY=VALUE words; the values of ``grid`` are several, set apart by commas.

    Raises:
        ConfigError: a word of another form, or a value that is no YAML.
    """
    found: Settings = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            form = "KEY=V1,V2,..." if option == "grid" else "KEY=VALUE"
            raise ConfigError(f"--{option} '{word}' is not of the form {form}")
        if key in found:
            raise ConfigError(f"--{option} gives {key} twice; name it once")
        try:
            found[key] = yaml.safe_load(f"[{text}]" if option == "grid" else text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--{option} '{word}': '{text}' can't be read as YAML; put text in quotes") from error
    return found


def _files(key: str, value: Any, where: str) -> list[str]:
    files = [value] if isinstance(value, str) else value or []
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ConfigError(f"{key}: expected one YAML file or a list of them, got {value!r} (in {where})")
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(f"{key}: there is no file '{file}' (in {where}); paths are read from the current folder")
    return files


def _settings(name: str, value: Any, where: str) -> Settings:
    if not isinstance(value or {}, dict):
        raise ConfigError(f"{name}: expected a mapping of keys to values, got {value!r} (in {where})")
    for key in value or {}:
        parts = key.split(",") if isinstance(key, str) else [key]
        for part in parts:
            if not isinstance(part, str) or not _KEY.fullmatch(part):
                raise ConfigError(
                    f"{name}: '{key}' is no key (in {where}); write it as for `tst fit`, such as"
                    " model.optimizer.init_args.lr, and join keys that move together by commas without spaces"
                )
            if part == CONFIG and len(parts) > 1:
                raise ConfigError(
                    f"{name}: '{key}' joins files with another key (in {where}); sweep them by themselves"
                )
            if part in _TAKEN:
                raise ConfigError(f"{name}: '{part}' is given to each run by the sweep itself (in {where}); remove it")
    return {
        part: _number(inner)
        for key, inner in (value or {}).items()
        for part in (key.split(",") if name == "set" else [key])
    }


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(inner) for inner in value]
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


# -- bag sizes ----------------------------------------------------------------------------------------------------


def _check_block_rows(cases: Sequence[Case]) -> None:
    """``data.block_rows`` must fit every bag size and, unless it is swept, be one for all runs: they read the same blocks.

    ``tst fit`` refuses one that does not fit, but only once that case's turn has come, which may be hours later.
    """
    sizes_of: dict[str, set[int]] = {}
    unfit: list[tuple[int, int]] = []
    given: set[int] = set()
    swept: set[int] = set()
    for case in cases:
        config = _composed(case)
        if config is None:
            continue
        phases = [_mapping(phase) for phase in _mapping(_mapping(config.get("model")).get("phases")).values()]
        sizes = {_bag_size(phase) for phase in phases}
        sizes_of[case.name] = {size for size in sizes if type(size) is int and size > 0}
        data = config.get("data", {})
        rows = data.get("block_rows", 1) if isinstance(data, dict) else None  # what `data` then is, fit itself must say
        if type(rows) is int:
            unfit += [(rows, size) for size in sorted(sizes_of[case.name]) if rows % size]
            given.add(rows)
            if not case.baseline:
                swept.add(rows)
    if unfit:
        (rows, size), least = unfit[0], math.lcm(*set().union(*sizes_of.values()))
        raise ConfigError(
            f"data.block_rows is {rows}, which bag size {size} does not divide; the least that fits every bag size of the"
            f" sweep is {least}: give --set data.block_rows={least}, or `data.block_rows: {least}` below `set:`"
        )
    parts = {part for case in cases for key in case.settings for part in key.split(",")}
    is_swept = not parts.isdisjoint({"data", "data.block_rows"})
    if len(given) > 1 and not is_swept:
        if len(swept) > 1:
            least, listed = math.lcm(*swept), " or ".join(map(str, sorted(swept)))
            raise ConfigError(
                f"data.block_rows is {listed}, by the files of `config`:"
                f" runs would read other blocks of the data: give --set data.block_rows={least}, or"
                f" `data.block_rows: {least}` below `set:`"
            )
        rows = swept.pop()
        raise ConfigError(
            f"data.block_rows is {rows} in the swept runs and {(given - {rows}).pop()} in the baseline, which would read"
            f" other blocks of the data: give --set data.block_rows={rows}, or `data.block_rows: {rows}` below `set:`"
        )


def _bag_size(phase: dict[str, Any]) -> Any:
    """Of a phase as YAML has it, or of the one within it."""
    given = _mapping(phase.get("init_args")) | phase
    return _bag_size(_mapping(given["phase"])) if "phase" in given else given.get("bag_size")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _composed(case: Case) -> dict[str, Any] | None:
    """The run's configuration as far as plain YAML tells, without the defaults of ``tst fit``; None if it tells nothing."""
    config: dict[str, Any] = {}
    for path in case.configs:
        try:
            _merge(config, yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {})
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
            return None  # the first run's own refusal is the clearer one
    for key, value in case.overrides().items():
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(config, value)
    return config


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value

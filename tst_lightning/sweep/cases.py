"""What a sweep runs: one case for each combination of values, with a name that says which."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from tst_lightning.errors import ConfigError

# Keys that repeat a setting rather than change it.
SEED_KEYS = {"seed_everything", "data.seed"}
PHASES = "model.phases"
# Swept like any key: a YAML file, or several, composed after those of every run.
CONFIG = "config"
_LONGEST_NAME = 120

Settings = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One run of a sweep.

    Attributes:
        name: of its folder; made of what is swept alone, so that a sweep can grow around its finished runs.
        configs: YAML files of ``tst fit``, composed in this order, swept ones among them.
        settings: swept key, or keys joined by commas, to value.
        fixed: key to value, the same in every run.
        baseline: whether it is the reference that other cases are held against.
    """

    name: str
    configs: tuple[str, ...]
    settings: Settings
    fixed: Settings = field(default_factory=dict)
    baseline: bool = False

    @property
    def setting(self) -> Settings:
        """What is swept but for the seeds: cases that share it are repetitions."""
        return {key: value for key, value in self.settings.items() if not is_seed(key)}

    def overrides(self) -> Settings:
        """Every single key that the run gets beside its YAML files."""
        swept = {part: value for key, value in self.settings.items() for part in key.split(",") if key != CONFIG}
        return self.fixed | swept

    def arguments(self) -> list[str]:
        """The words after ``tst fit`` but for the run's folder."""
        words = [word for config in self.configs for word in ("--config", config)]
        return words + [f"--{key}={as_argument(value)}" for key, value in self.overrides().items()]


def is_seed(key: str) -> bool:
    """Whether a swept key, or each of its joined keys, is a seed."""
    return set(key.split(",")) <= SEED_KEYS


def as_argument(value: Any) -> str:
    """A value as ``tst fit`` takes it on the command line: text as it is, all else as YAML, floats with all digits."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("...\n").strip()


def expand(grid: Mapping[str, Sequence[Any]], listed: Iterable[Settings]) -> list[Settings]:
    """The product of the grid, its last key fastest, and then the cases listed."""
    product = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
    return [*product, *map(dict, listed)]


def make_cases(swept: Sequence[Settings], configs: Sequence[str], fixed: Settings) -> list[Case]:
    """Cases with their names.

    Raises:
        ConfigError: two cases are the same.
    """
    names = labels(key for settings in swept for key in settings)
    cases = [
        Case(_name(settings, names) or "as_configured", (*configs, *_overlays(settings)), settings, fixed)
        for settings in swept
    ]
    check_unique(cases)
    return cases


def make_baselines(cases: Iterable[Case], configs: Sequence[str]) -> list[Case]:
    """The baseline's cases: one for each combination of what other cases sweep beside phases and files, seeds among it."""
    found: dict[str, Case] = {}
    for case in cases:
        settings = {kept: value for key, value in case.settings.items() if (kept := _without_phases(key))}
        fixed = {key: value for key, value in case.fixed.items() if _without_phases(key)}
        name = "-".join(filter(None, ["baseline", _name(settings, labels(settings))]))
        found.setdefault(name, Case(name, tuple(configs), settings, fixed, baseline=True))
    return list(found.values())


def check_unique(cases: Iterable[Case]) -> None:
    """Refuses two cases in one folder.

    Raises:
        ConfigError: names it.
    """
    names: set[str] = set()
    for case in cases:
        if case.name in names:
            raise ConfigError(f"the case {case.name} is given twice, by grid or list; each may stand there once")
        names.add(case.name)


def labels(keys: Iterable[str]) -> dict[str, str]:
    """Short names of swept keys: the last part, and as many before it as it takes to tell them apart."""
    parts = {key: min((k.split(".") for k in key.split(",")), key=lambda k: len(k[-1])) for key in keys}
    parts = {key: [part for part in path if part != "init_args"] for key, path in parts.items()}
    depths = dict.fromkeys(parts, 1)
    while True:
        short = {key: ".".join(path[-depths[key] :]) for key, path in parts.items()}
        names = list(short.values())
        clashing = [key for key in short if names.count(short[key]) > 1 and depths[key] < len(parts[key])]
        if not clashing:
            return short
        for key in clashing:
            depths[key] += 1


def value_text(value: Any) -> str:
    """A value as people read it, and as it stands in a name: 0.2, 1e-05, true, null; of a YAML file the bare name."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list):
        return "_".join(map(value_text, value))
    text = str(value)
    return PurePath(text).stem if text.endswith((".yaml", ".yml")) else text


def _without_phases(key: str) -> str:
    return ",".join(
        part for part in key.split(",") if part not in (PHASES, CONFIG) and not part.startswith(f"{PHASES}.")
    )


def _overlays(settings: Settings) -> list[str]:
    files = settings.get(CONFIG, [])
    return [files] if isinstance(files, str) else files


def _name(settings: Settings, names: Mapping[str, str]) -> str:
    given = "-".join(
        f"{names[key]}{'_' if isinstance(value, str) else ''}{value_text(value)}" for key, value in settings.items()
    )
    name = re.sub(r"[^\w.+-]+", "_", given)[:_LONGEST_NAME].lstrip(".-")
    if name != given:  # something was lost, by which two names may have differed
        name += "-" + hashlib.sha256(given.encode()).hexdigest()[:8]
    return name

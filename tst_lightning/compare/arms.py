"""Arms: the runs of one experiment, repeated under other seeds. Families: an experiment repeated at other lengths."""

import json
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from tst_lightning.compare.runs import CONFIG_BOOKKEEPING, Point, Run

# What a record holds beside the experiment: its seeds, how far it came, where it ran and from where it read. A key not
# named here is of the experiment, so one that is new keeps runs apart rather than averaging what differs.
NOT_OF_THE_ARM = {
    *("name", "status", "step", "seed", "versions", "device", "device_name", "compiled_layers", "val_tokens"),
    *("flops", "tokens_needed", "tokens_available", "tokens_cut", "passes"),
}
NOT_OF_THE_ARM_WITHIN = {
    "stream": {"seed"},
    "initial_weights": {"folder"},
    # How a step is shared out among processes and micro-batches.
    "batch": {"micro_batch_rows", "accumulate_grad_batches"},
}
NOT_OF_A_CORPUS = {"path", "needed", "available", "remainder", "uneven", "passes"}
NO_SEED = (None, -1)
SEED_WORD = re.compile(r"(?:(?:^|[-_ ./=])(?:seed|s))?[-_ ./=]*$")
SEED_NAME = re.compile(r"(?:seed|s)?[-_ .=]*[0-9]+")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seeds, each seed once.

    Attributes:
        name: the shared part of the runs' names; unique.
        runs: at least one.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[Any]:
        """The seeds of the runs as recorded, sorted; None or -1 of a run that had none."""
        recorded = [run.record.get("seed") for run in self.runs]
        return sorted(recorded, key=lambda seed: (0, seed, "") if isinstance(seed, int) else (1, 0, json.dumps(seed)))

    def by_seed(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Values by run name turned to values by seed, those of weights and data order together.

        A run without a seed gets a key that no other arm has.
        """
        return {seed_key(run): values[run.name] for run in self.runs if run.name in values}

    def mean_curve(self) -> tuple[Point, ...]:
        """Means over the runs at the steps that all of them validated at; of one run its own curve."""
        if len(self.runs) == 1:
            return self.runs[0].curve
        curves = [{point.step: point for point in run.curve} for run in self.runs]
        shared = sorted(set.intersection(*map(set, curves)))
        keys = ("loss", "flops", "tokens", "positions", "seconds")
        return tuple(
            Point(step, *(fmean(getattr(curve[step], key) for curve in curves) for key in keys)) for step in shared
        )

    def switches(self) -> list[dict[str, Any]]:
        """Where phases began: steps, FLOPs and tokens as of any run, seconds as the mean over the runs that came there."""
        every = [run.switches() for run in self.runs]
        longest = max(every, key=len)
        return [
            switch | {"seconds": fmean(mine[i]["seconds"] for mine in every if len(mine) > i)}
            for i, switch in enumerate(longest)
        ]


def seed_key(run: Run) -> str:
    """What two runs must share to be a pair: the seeds of weights and of data order, or the run's name if it had none."""
    seed, order = run.record.get("seed"), data_seed(run)
    return f"unseeded {run.name}" if seed in NO_SEED else json.dumps([seed, seed if order is None else order])


def data_seed(run: Run) -> Any:
    """The seed of the data's order as recorded, or None."""
    stream = run.record.get("stream")
    return stream.get("seed") if isinstance(stream, dict) else None


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Groups runs into arms, in the order in which their first runs were named.

    A run whose settings and seeds an arm holds already is no further sample of it: it begins another arm.
    """
    groups: list[tuple[str, list[Run]]] = []
    for run in runs:
        key = json.dumps(experiment(run.record), sort_keys=True)
        free = (group for group_key, group in groups if group_key == key and seed_key(run) not in map(seed_key, group))
        group = next(free, None)
        if group is None:
            groups.append((key, [run]))
        else:
            group.append(run)
    found = [group for _, group in groups]
    names = _distinct([_shared_name(group) for group in found], found)
    return [Arm(name, tuple(group)) for name, group in zip(names, found, strict=True)]


def families_of(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Groups arms that differ in nothing but their number of steps, and in what follows from it.

    Returns:
        The arms of each family, in the order given, under the shared part of its runs' names.
    """
    families: list[list[Arm]] = []
    for arm in arms:
        family = next((family for family in families if _same_but_for_length(family, arm)), None)
        if family is None:
            families.append([arm])
        else:
            family.append(arm)
    groups = [[run for arm in family for run in arm.runs] for family in families]
    names = [of[0].name if len(of) == 1 else _shared_name(group) for of, group in zip(families, groups, strict=True)]
    return dict(zip(_distinct(names, groups), families, strict=True))


def experiment(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is of the experiment in a run's record, alike in all runs of an arm."""
    kept = {
        key: _without(value, NOT_OF_THE_ARM_WITHIN.get(key, set()))
        for key, value in record.items()
        if key not in NOT_OF_THE_ARM
    }
    kept["model"] = kept["model"] | {"config": _without(kept["model"].get("config"), CONFIG_BOOKKEEPING)}
    if isinstance(kept.get("corpora"), dict):
        kept["corpora"] = {name: _without(corpus, NOT_OF_A_CORPUS) for name, corpus in kept["corpora"].items()}
    return kept


def _same_but_for_length(family: Sequence[Arm], arm: Arm) -> bool:
    first, new = (experiment(one.runs[0].record) for one in (family[0], arm))
    if any(new["max_steps"] == one.runs[0].record["max_steps"] for one in family):
        return False
    # The boundary is rounded down to a step, so equal shares differ by up to a step on either side.
    lengths = [max(each["max_steps"], 1) for each in (first, new)]
    shares = [
        [phase["first_step"] / length for phase in each["phases"]]
        for each, length in zip((first, new), lengths, strict=True)
    ]
    rounding = sum(1 / length for length in lengths)
    if len(shares[0]) != len(shares[1]) or any(abs(a - b) > rounding for a, b in zip(*shares, strict=True)):
        return False
    stripped = [
        each | {"max_steps": 0, "phases": [_without(p, {"first_step", "steps", "tokens"}) for p in each["phases"]]}
        for each in (first, new)
    ]
    return bool(stripped[0] == stripped[1])


def _without(value: Any, keys: set[str]) -> Any:
    return {key: inner for key, inner in value.items() if key not in keys} if isinstance(value, dict) else value


def _distinct(names: Sequence[str], groups: Sequence[Sequence[Run]]) -> list[str]:
    """The names, but for those of several groups, as of two sweeps over one grid: there what the runs' paths share."""
    twice = {name for name in names if names.count(name) > 1}
    root = os.path.commonpath([Path(run.path).absolute() for group in groups for run in group]) if twice else ""
    distinct: list[str] = []
    for name, group in zip(names, groups, strict=True):
        if name in twice:
            name = _shared([os.path.relpath(run.path, root) for run in group])
        distinct.append(_unique(name, distinct))
    return distinct


def _shared_name(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].name
    names = [str(run.record["name"]) for run in runs]
    if all(SEED_NAME.fullmatch(name) for name in names):  # of folders such as tst/seed1 and tst/seed2 the paths tell
        return Path(_shared([run.path for run in runs])).name or runs[0].name
    return _shared(names) or runs[0].name


def _shared(names: Sequence[str]) -> str:
    """The part that names begin with, or else end with, cut at a word's end, without separators and a word for seed."""
    if len(set(names)) == 1:
        return names[0]
    found = SEED_WORD.sub("", _common_start(names))
    return found or _common_start([name[::-1] for name in names])[::-1].lstrip("-_ ./=")


def _common_start(names: Sequence[str]) -> str:
    start = os.path.commonprefix(list(names))
    nexts = [name[len(start)] for name in names if len(name) > len(start)]
    # A cut within a number or a word, as in seed10 and seed11, falls back to its beginning.
    for inside in ("[0-9]", "[A-Za-z]"):
        if start and re.fullmatch(inside, start[-1]) and any(re.fullmatch(inside, following) for following in nexts):
            return re.sub(f"{inside}+$", "", start)
    return start


def _unique(name: str, taken: Container[str]) -> str:
    label, copies = name, 1
    while label in taken:
        copies += 1
        label = f"{name} #{copies}"
    return label

"""Run folders: what a run was (run.json), its validations (csv/version_*/metrics.csv), and whether runs fit together.

A run writes one csv folder per start. A run that was killed and resumed repeats some steps, so a later version's
rows replace those of earlier versions from its first step on.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tst_lightning.errors import ConfigError, RunError

FORMAT = 1
REQUIRED: dict[str, Any] = {
    "name": str,
    "status": str,
    "step": int,
    "max_steps": int,
    "model": dict,
    "tokenizer_sha256": str,
    "val_sha256": str,
    "seq_len": int,
    "phases": list,
    "flops_convention": str,
}
PHASE_KEYS: dict[str, Any] = {
    "name": str,
    "bag_size": int,
    "first_step": int,
    "steps": int,
    "flops_per_step": (int, float),
}
COMPUTE_COLUMNS = ("compute/step", "compute/flops", "compute/tokens", "compute/positions", "compute/seconds")
# Bookkeeping that transformers writes into a configuration, and ids for generating text; they don't change the model.
CONFIG_BOOKKEEPING = {"transformers_version", "_name_or_path", "name_or_path", "architectures"}
CONFIG_BOOKKEEPING |= {"bos_token_id", "eos_token_id"}

Row = dict[str, float]


@dataclass(frozen=True)
class Point:
    """One validation of a run; everything but the loss is cumulative since the start of the run.

    Attributes:
        step: optimizer steps done.
        loss: next-token validation loss, nats per token.
        flops: floating-point operations, on the run's ``flops_convention``.
        tokens: data tokens read.
        positions: transformer positions computed.
        seconds: training seconds.
        perplexity: exp(loss) as the run logged it, or None.
        bits_per_byte: bits per byte of text as the run logged it, or None.
    """

    step: int
    loss: float
    flops: float
    tokens: float
    positions: float
    seconds: float
    perplexity: float | None = None
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class Run:
    """A run folder as read.

    Attributes:
        name: the run's name, or its path where two runs share a name.
        path: the folder, as it was given.
        record: the contents of run.json.
        curve: its validations, by increasing FLOPs; never empty.
    """

    name: str
    path: str
    record: dict[str, Any]
    curve: tuple[Point, ...]

    @property
    def final(self) -> Point:
        """The last validation."""
        return self.curve[-1]

    def switches(self) -> list[dict[str, Any]]:
        """Where each phase after the first began.

        Returns:
            For each switch within the curve: the phase that begins, the step (optimizer steps done before it), the
            FLOPs (sum of steps times flops_per_step of the phases before it), the tokens read, and the training seconds.
            The tokens are exact where a validation lies in the phase before the switch, and else interpolated between
            its neighbours, as the seconds are.
        """
        switches: list[dict[str, Any]] = []
        flops = tokens = 0.0
        phases = [phase for phase in self.record["phases"] if phase["steps"] > 0]
        for phase, following in zip(phases, phases[1:], strict=False):
            first, end = phase["first_step"], phase["first_step"] + phase["steps"]
            flops += phase["flops_per_step"] * phase["steps"]
            if end > self.final.step:
                break
            inside = [point for point in self.curve if first < point.step <= end]
            if inside:
                # Tokens per step are constant within a phase.
                tokens += (inside[-1].tokens - tokens) / (inside[-1].step - first) * (end - first)
            else:
                steps = [first, *(point.step for point in self.curve if point.step > end)]
                tokens = float(np.interp(end, steps, [tokens, *(p.tokens for p in self.curve if p.step > end)]))
            seconds = np.interp(end, [0, *(p.step for p in self.curve)], [0.0, *(p.seconds for p in self.curve)])
            switches.append(
                {
                    "phase": following["name"],
                    "step": end,
                    "flops": flops,
                    "tokens": round(tokens),
                    "seconds": float(seconds),
                }
            )
        return switches


def read_run(path: str) -> Run:
    """Reads one run folder.

    Raises:
        ConfigError: it holds no run, no validation, or a format unknown here.
        RunError: a file in it is damaged.
    """
    record = read_record(path)
    return Run(record["name"], path, record, _read_curve(path, record["status"] == "finished"))


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Reads run folders and gives each a name of its own: its name, or its path where two share a name.

    Raises:
        ConfigError: fewer than two folders, one given twice, or one that holds no run, no validation, or a format
            unknown here.
        RunError: a file in it is damaged.
    """
    if len(paths) < 2:
        raise ConfigError(f"a comparison needs two runs or more, got {len(paths)}; name the reference run first")
    folders = [os.path.realpath(path) for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if (times := folders.count(folder)) > 1:
            raise ConfigError(f"run folder '{path}' is named {times} times; name each run once")
    records = [read_record(path) for path in paths]
    given = [record["name"] for record in records]
    names = [name if given.count(name) == 1 else path for name, path in zip(given, paths, strict=True)]
    if len(set(names)) < len(names):  # a run is named as the folder of another
        names = list(paths)
    return [
        Run(name, path, record, _read_curve(path, record["status"] == "finished"))
        for name, path, record in zip(names, paths, records, strict=True)
    ]


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuses runs whose losses or FLOPs can't be laid on one axis.

    Raises:
        ConfigError: the model, the tokenizer, the validation data, the sequence length or the FLOPs convention of a
            run differs from the first run's; the message names the difference and both values.
    """
    reference = runs[0]
    for run in runs[1:]:
        mine, other = reference.record, run.record
        differences = _model_differences(mine["model"], other["model"])
        for key, words in (
            ("tokenizer_sha256", "tokenizer"),
            ("val_sha256", "validation data"),
            ("seq_len", "sequence length"),
            ("val_tokens", "scored validation tokens"),
            ("flops_convention", "FLOPs convention"),
        ):
            if mine.get(key) != other.get(key):
                differences.append(f"{words} ({key} {_shown(mine.get(key))} and {_shown(other.get(key))})")
        if differences:
            message = (
                f"runs '{reference.name}' and '{run.name}' can't be compared, they differ in "
                f"{'; '.join(differences)}; compare runs that share these"
            )
            raise ConfigError(" ".join(message.split()))  # a name may hold a line's end


def _model_differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    found = []
    if mine.get("class") != other.get("class"):
        found.append(f"model class ({_shown(mine.get('class'))} and {_shown(other.get('class'))})")
    a, b = (config if isinstance(config := each.get("config"), dict) else {} for each in (mine, other))
    keys = [key for key in sorted(a.keys() | b.keys()) if key not in CONFIG_BOOKKEEPING]
    values = [
        f"{key} {_shown(a[key]) if key in a else 'absent'} and {_shown(b[key]) if key in b else 'absent'}"
        for key in keys
        if (key in a) != (key in b) or a.get(key) != b.get(key)
    ]
    if values:
        found.append(f"model config ({', '.join(values)})")
    return found


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    # The beginning of a hash is enough to tell two apart.
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{40,}", text) else text


def read_record(path: str) -> dict[str, Any]:
    """Reads the facts of a run, its ``run.json``.

    Raises:
        ConfigError: there is none, or its format is unknown here.
        RunError: it is damaged.
    """
    folder, file = Path(path), Path(path) / "run.json"
    if not folder.exists():
        raise ConfigError(f"no such run folder: {path}")
    if not file.is_file():
        raise ConfigError(f"{path} is not a run folder: it has no run.json; name a folder that `tst fit` wrote")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise RunError(f"{file} is damaged: it holds no table of keys")
    if record.get("format") != FORMAT:
        raise ConfigError(f"{file} has format {_shown(record.get('format'))}; this version reads format {FORMAT}")
    for key, kind in REQUIRED.items():
        if not isinstance(record.get(key), kind):
            raise RunError(f"{file} is damaged: '{key}' is missing or is not of type {kind.__name__}")
    for phase in record["phases"]:
        for key, kind in PHASE_KEYS.items():
            if not isinstance(phase, dict) or not isinstance(phase.get(key), kind):
                raise RunError(f"{file} is damaged: '{key}' of a phase is missing or is not of its type")
    return record


def _read_curve(path: str, finished: bool) -> tuple[Point, ...]:
    rows = _merged_rows(Path(path) / "csv", finished)
    points: list[Point] = []
    for step in sorted(rows):
        row = rows[step]
        if "val/loss" not in row:
            continue
        missing = [column for column in COMPUTE_COLUMNS if column not in row]
        if missing:
            raise RunError(f"{path}/csv is damaged: the validation at step {step} has no '{missing[0]}'")
        for column in ("val/loss", *COMPUTE_COLUMNS):
            if not math.isfinite(row[column]):
                raise ConfigError(f"run {path} can't be compared: its {column} is {row[column]} at step {step}")
        at, *totals = (row[column] for column in COMPUTE_COLUMNS)
        # A perplexity may overflow where its loss doesn't.
        extra = [row.get(key) for key in ("val/perplexity", "val/bits_per_byte")]
        point = Point(int(at), row["val/loss"], *totals, *(x if x and math.isfinite(x) else None for x in extra))
        if points and (point.flops < points[-1].flops or point.tokens < points[-1].tokens):
            raise RunError(f"{path}/csv is damaged: FLOPs or tokens decrease at step {step}")
        if points and point.flops == points[-1].flops:
            points.pop()  # validated twice at one place: the later stands
        points.append(point)
    if not points or points[-1].flops <= 0:
        raise ConfigError(f"run {path} has no validation after its first step; there is nothing to compare")
    return tuple(points)


def _merged_rows(folder: Path, finished: bool) -> dict[int, Row]:
    """All versions' rows by step; a version replaces what earlier ones logged from its first step on."""
    files = [(int(found[1]), file) for file in folder.glob("version_*/metrics.csv") if (found := _version(file))]
    merged: dict[int, Row] = {}
    for number, file in sorted(files):
        torn_is_damage = finished and number == max(files)[0]
        rows = _read_rows(file, torn_is_damage)
        first = min(rows, default=None)
        if first is not None:
            merged = {step: row for step, row in merged.items() if step < first} | rows
    return merged


def _version(file: Path) -> re.Match[str] | None:
    return re.fullmatch(r"version_(\d+)", file.parent.name)


def _read_rows(file: Path, torn_is_damage: bool) -> dict[int, Row]:
    """One csv file's filled cells by step; a last line without an end is what a killed run leaves, and is dropped."""
    try:
        text = file.read_bytes().decode("utf-8")
        whole, _, torn = text.rpartition("\n")
        if torn and torn_is_damage:
            raise ValueError("it ends in the middle of a row, though the run finished")
        reader = csv.reader(io.StringIO(whole, newline=""), strict=True)
        header = next(reader, [])
        if header and "step" not in header:
            raise ValueError("it has no column 'step'")
        rows: dict[int, Row] = {}
        for cells in reader:
            if len(cells) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(cells)} cells for {len(header)} columns")
            filled = {
                key: float(cell)
                for key, cell in zip(header, cells, strict=True)
                if cell.strip() and (key == "step" or key.startswith(("val/", "compute/")))
            }
            if "step" not in filled:
                raise ValueError(f"line {reader.line_num} has no step")
            rows.setdefault(int(filled["step"]), {}).update(filled)
        return rows
    except (ValueError, OverflowError, csv.Error) as error:
        raise RunError(f"{file} is damaged: {error}") from error

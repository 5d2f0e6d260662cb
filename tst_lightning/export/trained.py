"""The trained model that a checkpoint holds, and what it knows of its training: needs no GPU, no data and no trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tst_lightning.checkpoint_file import read_step
from tst_lightning.errors import ConfigError, RunError
from tst_lightning.sharded_checkpoint import TRAINER_STATE, read_sharded

_PREFIX = "model.lm."  # of the Hugging Face model's own names, in the LightningModule


class PhaseTotals(NamedTuple):
    """What training took in one phase, over all ranks, up to the checkpoint.

    Attributes:
        name: of the phase.
        tokens: read.
        positions: of the transformer, computed.
        flops: of the model.
        seconds: wall time of training.
    """

    name: str
    tokens: int
    positions: int
    flops: int
    seconds: float

    @property
    def bag_size(self) -> int:
        """Tokens that one position read."""
        return self.tokens // self.positions


@dataclass
class TrainedModel:
    """What a checkpoint holds.

    Attributes:
        path: of the checkpoint.
        settings: of the Hugging Face configuration, as its JSON has them.
        weights: by the names of the Hugging Face model, on the CPU.
        step: optimizer steps done.
        total_steps: that the run was laid out for.
        phases: that were trained in so far, in their order; empty if the run had no FlopsMeter.
        corpora: tokens read of each; empty likewise.
        attention: how the FLOPs count it; None likewise.
        begun_from: ``folder`` and ``sha256`` of the weights that the run began from; None if they were drawn.
    """

    path: Path
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    step: int
    total_steps: int
    phases: list[PhaseTotals]
    corpora: dict[str, int]
    attention: str | None
    begun_from: dict[str, Any] | None

    @property
    def superposed(self) -> PhaseTotals | None:
        """The phase that training was in last, if a position read several tokens in it."""
        return _superposed(self.phases)


@dataclass(frozen=True)
class Progress:
    """How far training had come.

    Attributes:
        step: optimizer steps done.
        phases: as of :class:`TrainedModel`.
        tokenizer_sha256: of the shards that were read; None if it is not kept.
    """

    step: int
    phases: list[PhaseTotals]
    tokenizer_sha256: str | None

    @property
    def superposed(self) -> PhaseTotals | None:
        """As of :class:`TrainedModel`."""
        return _superposed(self.phases)


def _superposed(phases: list[PhaseTotals]) -> PhaseTotals | None:
    last = phases[-1] if phases else None
    return last if last and last.bag_size > 1 else None


def read_trained(path: Path) -> TrainedModel:
    """Reads a checkpoint, a file or a sharded one's folder, after looking it through.

    The weights of a file stay on disk until they are used; those of a sharded one are put together in memory.

    Args:
        path: of the checkpoint.

    Raises:
        ConfigError: there is none.
        RunError: it is damaged, or does not say what its model is.
        OSError: it can't be read.
    """
    if not path.exists():
        raise ConfigError(f"there is no checkpoint at '{path}'; name one, such as RUN/checkpoints/last.ckpt")
    if (path / "checkpoints").is_dir():
        raise ConfigError(
            f"'{path}' is a run's folder; name one of its checkpoints, such as {path / 'checkpoints' / 'last.ckpt'}"
        )
    content = _read(path)
    settings = content.get("made_with", {}).get("model.config")
    weights = {
        name.removeprefix(_PREFIX): value for name, value in content["state_dict"].items() if name.startswith(_PREFIX)
    }
    if not settings or not weights:
        lacking = "configuration of its model" if not settings else f"weights named {_PREFIX}*"
        raise RunError(f"checkpoint '{path}' has no {lacking} in it; it is of another version, or of another program")
    meter = _meter(content)
    return TrainedModel(
        path=path,
        settings=settings,
        weights=weights,
        step=content["global_step"],
        total_steps=content.get("total_steps", content["global_step"]),
        phases=_phases(meter),
        corpora=meter.get("corpora", {}),
        attention=meter.get("attention"),
        begun_from=content.get("begun_from"),
    )


def read_progress(path: Path) -> Progress:
    """Reads how far training had come from a checkpoint that was looked through; its weights are left where they are.

    Args:
        path: of the checkpoint, a file or a sharded one's folder.

    Raises:
        RunError: it does not say so in the way of `tst fit`.
        OSError: it can't be read.
    """
    content = torch.load(
        path / TRAINER_STATE if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=True
    )
    try:
        streams = content["loops"].get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
        tokenizer = next((stream["layout"]["tokenizer"] for stream in streams), None)
        return Progress(content["global_step"], _phases(_meter(content)), tokenizer)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"checkpoint '{path}' does not say how far training had come ({error!r}); it was altered, or is of another"
            " version"
        ) from error


def _meter(content: dict[str, Any]) -> dict[str, Any]:
    return content.get("callbacks", {}).get("FlopsMeter", {})


def _phases(meter: dict[str, Any]) -> list[PhaseTotals]:
    return [
        PhaseTotals(name, *(totals[key] for key in PhaseTotals._fields[1:]))
        for name, totals in meter.get("phases", {}).items()
        if totals["positions"]
    ]


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return read_sharded(path)
    read_step(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)

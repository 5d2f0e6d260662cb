"""What a plan is made for: model, batch, devices and data; from a fit configuration or from a shape, here they are one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from transformers import PreTrainedConfig

from tst_lightning.flops import AttentionConvention
from tst_lightning.modeling import ActivationCheckpointing
from tst_lightning.phases import PhaseStrategy

if TYPE_CHECKING:
    from tst_lightning.data.corpora import Corpus

Layout = Literal["single", "ddp", "fsdp"]


@dataclass(frozen=True)
class Setting:
    """Everything about a run but its length and its phases.

    Attributes:
        source: where it was read from, for the reader.
        config: of the model.
        phases: as configured, name to phase; those of the baseline where only one is wanted.
        steps: optimizer steps as configured; None where nothing says so.
        seq_len: L, positions a row.
        batch_size: rows of a micro-batch of each device.
        accumulate: micro-batches a step.
        devices: that share a step's rows.
        precision: Lightning's name.
        device_type: cpu or cuda.
        layout: how parameters lie on the devices.
        optimizer: from parameters to the optimizer.
        attention: as FLOPs count it, full or causal.
        checkpointing: of activations, none, selective or full.
        block_rows: the largest bag size that the data is laid out for; None where nothing says so.
        pool_blocks: blocks whose rows are permuted together.
        corpora: to train on; empty where there are none yet.
        unique_tokens: to train on, as the user says; None where the corpora say.
    """

    source: str
    config: PreTrainedConfig
    phases: Mapping[str, PhaseStrategy]
    steps: int | None
    seq_len: int
    batch_size: int
    accumulate: int = 1
    devices: int = 1
    precision: str = "32-true"
    device_type: str = "cpu"
    layout: Layout = "single"
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    attention: AttentionConvention = "full"
    checkpointing: ActivationCheckpointing = "none"
    block_rows: int | None = None
    pool_blocks: int = 64
    corpora: "tuple[Corpus, ...]" = ()
    unique_tokens: int | None = None

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step over all devices."""
        return self.batch_size * self.accumulate * self.devices

    @property
    def positions_per_step(self) -> int:
        """Positions of an optimizer step over all devices."""
        return self.rows_per_step * self.seq_len

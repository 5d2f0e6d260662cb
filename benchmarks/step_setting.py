"""What ``step_time.py`` measures: the arms, and the one setting that all of them share.

The recipe (optimizer, schedule, clipping) is that of the quickstart's baseline, read from its YAML, whatever the shape.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers import LlamaConfig

from tst_lightning.shards.manifest import HEADER_BYTES, Manifest

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "quickstart"
# Of the run that is laid out, so that no validation, checkpoint, phase switch or decay comes near the timed steps.
LAID_OUT_STEPS = 1_000_000
LEAST_BLOCK_ROWS = 16
BAGGED = ("ours", "paper listing", "patch-level")


@dataclass(frozen=True)
class Preset:
    """Sizes of a Llama model and of a step; ``tokenizer_ids`` is how many ids the shards' tokenizer gets.

    The text at hand fills a tokenizer of some 16,000 ids, no larger one; so the tokens of the larger presets lie among
    the first rows of embedding and LM head. The V-wide products are those of the full vocabulary all the same.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    seq_len: int
    batch_size: int
    tokenizer_ids: int


PRESETS = {
    "quickstart": Preset(1024, 96, 4, 3, 3, 256, 128, 16, 1024),
    "d256": Preset(32_768, 256, 6, 4, 4, 688, 256, 8, 16_384),
    # The shapes of arXiv 2605.06546.
    "270m": Preset(128_256, 576, 30, 9, 9, 1536, 2048, 8, 16_384),
    "600m": Preset(128_256, 960, 32, 15, 15, 2560, 2048, 4, 16_384),
    "3b": Preset(128_256, 2048, 36, 16, 4, 11_008, 2048, 2, 16_384),
}


@dataclass(frozen=True)
class Arm:
    """One way of taking a training step; ``bag_size`` is s, 1 for next-token training."""

    kind: str
    bag_size: int = 1

    @property
    def name(self) -> str:
        if self.kind not in BAGGED:
            return self.kind
        return f"{self.kind} s={self.bag_size}" if self.bag_size > 1 else f"{self.kind} baseline"


BASELINE = Arm("ours")


def all_arms(bags: list[int]) -> list[Arm]:
    """Every arm, the baseline first.

    Args:
        bags: bag sizes above 1 of the arms that have one.
    """
    return [
        BASELINE,
        *(Arm(kind, bag_size) for kind in BAGGED for bag_size in bags),
        Arm("bare PyTorch loop"),
        Arm("HF Trainer"),
    ]


@dataclass(frozen=True)
class Setting:
    """What all arms of a run share.

    Attributes:
        model: arguments of ``LlamaConfig``.
        seq_len: positions a row, L.
        batch_size: rows a step, B.
        block_rows: ``data.block_rows`` of every arm of ours.
        precision: Lightning's name: 32-true, bf16-mixed or bf16-true.
        device: "cpu" or "cuda".
        compile: whether the decoder layers are compiled.
        seed: of weights and order of rows.
        shards: folder of ``tst prepare``.
    """

    model: dict[str, Any]
    seq_len: int
    batch_size: int
    block_rows: int
    precision: str
    device: str
    compile: bool
    seed: int
    shards: str

    @property
    def positions(self) -> int:
        """Positions a step, the same in every arm."""
        return self.batch_size * self.seq_len

    def llama(self) -> LlamaConfig:
        """The model's configuration; without the cache of generation, which training has no use for."""
        return LlamaConfig(**self.model, use_cache=False)

    def rows(self, row_tokens: int) -> Tensor:
        """The training split in rows, shuffled: (n, row_tokens) int64, in memory."""
        manifest = Manifest.parse(Path(self.shards))
        chunks = [
            np.fromfile(Path(self.shards) / "train" / chunk["filename"], manifest.dtype, offset=HEADER_BYTES)
            for chunk in manifest.train.chunks
        ]
        tokens = torch.from_numpy(np.concatenate(chunks).astype(np.int64))
        rows = tokens[: len(tokens) // row_tokens * row_tokens].view(-1, row_tokens)
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))]


def model_arguments(preset: Preset, seq_len: int) -> dict[str, Any]:
    """Arguments of ``LlamaConfig`` for a preset."""
    return {
        "vocab_size": preset.vocab_size,
        "hidden_size": preset.hidden_size,
        "intermediate_size": preset.intermediate_size,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "num_key_value_heads": preset.kv_heads,
        "max_position_embeddings": seq_len,
        "tie_word_embeddings": False,
    }


def block_rows(bags: list[int]) -> int:
    """The least ``data.block_rows`` that every bag size divides, and 16 does too."""
    return math.lcm(LEAST_BLOCK_ROWS, *bags)


def recipe(name: str = "baseline") -> dict[str, Any]:
    """A quickstart configuration as it is shipped: "baseline" or "tst"."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())

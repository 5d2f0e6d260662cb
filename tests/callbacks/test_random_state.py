"""Dropout goes on after a stop as it would have."""

import signal
from pathlib import Path
from typing import Any

import torch

from tests.test_resume import assert_same_state, last, signal_at


def test_a_resumed_run_with_dropout_is_bit_equal(fit: Any, tiny_run: Path, tmp_path: Path) -> None:
    """Stopped in superposition, at a validation, and in recovery."""
    dropout = {"model__config__init_args__attention_dropout": 0.1}
    assert fit("whole", **dropout)[0] == 0
    for stop in (2, 4, 13):
        code, said = fit("pieces", "--ckpt_path", "last", *signal_at(stop), **dropout)
        assert code == 128 + signal.SIGTERM, said
    assert fit("pieces", "--ckpt_path", "last", **dropout)[0] == 0
    whole, pieces = last(tmp_path / "whole"), last(tmp_path / "pieces")
    assert_same_state(whole, pieces)
    assert torch.equal(whole["rng"]["cpu"], pieces["rng"]["cpu"])

    without = last(tiny_run)["state_dict"]
    assert any(not torch.equal(value, without[key]) for key, value in whole["state_dict"].items())

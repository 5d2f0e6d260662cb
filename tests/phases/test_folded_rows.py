"""Folded rows: what they read, against superposition over rows as long, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SEQ_LEN
from tests.phases.test_phases import CONFIG
from tests.test_resume import last
from tst_lightning.__main__ import main
from tst_lightning.data.rows import cut_rows, row_plans
from tst_lightning.errors import ConfigError
from tst_lightning.modeling import build_causal_lm
from tst_lightning.phases import FoldedRowsPhase, OutputOnlyPhase, PhaseSchedule, PhaseStrategy, SuperpositionPhase


def test_a_folded_row_is_a_row_of_fewer_positions() -> None:
    torch.manual_seed(0)
    model = build_causal_lm(CONFIG).double()
    folded, bags = FoldedRowsPhase(4), SuperpositionPhase(4)
    assert folded.row_tokens(12) == bags.row_tokens(3) and folded.row_positions(12) == 3
    tokens = torch.randint(CONFIG.vocab_size, (2, folded.row_tokens(12)))
    one, other = (torch.autograd.grad(model(tokens, p).mean, list(model.parameters())) for p in (folded, bags))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_every_token_of_a_block_is_read_once_but_for_the_last_lookahead(
    bag_size: int, positions: int, more: int, output_only: bool
) -> None:
    seq_len, block_rows = bag_size * positions, bag_size * more
    phase: PhaseStrategy = OutputOnlyPhase(bag_size) if output_only else FoldedRowsPhase(bag_size)
    (plan,) = row_plans(PhaseSchedule({"only": phase}, 1), seq_len, 1)
    block = torch.arange(block_rows * (seq_len + 1))[None]
    rows = cut_rows(block, plan.row_tokens, plan.stride)
    count = len(rows)
    assert count == plan.rows_per_block(block.shape[1]) >= block_rows
    assert rows[:, :seq_len].flatten().tolist() == list(range(count * seq_len)), "read"
    assert [row.tolist() for row in rows[:, seq_len:]] == [
        list(range((i + 1) * seq_len, (i + 1) * seq_len + bag_size)) for i in range(count)
    ], "predicted besides"
    assert block.shape[1] - (count * seq_len + bag_size) < seq_len, "no more rows fit"
    # A batch of as many rows as a block has, or that times the multiple, uses that many blocks' tokens, each once.
    assert plan.used_tokens(block.shape[1], count) == plan.row_multiple * (count * seq_len + bag_size)


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="rows of 10 tokens .* can't be folded into bags of 4"):
        FoldedRowsPhase(4).row_tokens(10)
    with pytest.raises(ConfigError, match="row_multiple is 0"):
        FoldedRowsPhase(4, row_multiple=0)


@pytest.mark.parametrize("multiple", [None, 1])
def test_a_run_takes_reads_and_records_as_many_rows_as_it_says(
    multiple: int | None, fit: Callable[..., tuple[int, str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Meter, record and plan, each by hand: 10 steps of 4 rows of 16 tokens, in bags of 4; s times the rows, or as many."""
    init_args: dict[str, Any] = {"bag_size": 4, "share": 0.5, "row_multiple": multiple}
    folded = {"class_path": "tst_lightning.phases.FoldedRowsPhase", "init_args": init_args}
    recovery = {"class_path": "tst_lightning.phases.NextTokenPhase", "init_args": {}}
    code, said = fit("run", model__phases={"superposition": folded, "recovery": recovery})
    assert code == 0, said
    rows = 10 * 4 * (multiple or 4)
    done = last(tmp_path / "run")["callbacks"]["FlopsMeter"]["phases"]["superposition"]
    assert (done["positions"], done["tokens"]) == (rows * SEQ_LEN // 4, rows * SEQ_LEN)
    record, _ = json.loads((tmp_path / "run" / "run.json").read_text())["phases"]
    assert (record["tokens"], 10 * record["flops_per_step"]) == (done["tokens"], done["flops"])
    capfd.readouterr()
    assert main(["plan", "--config", str(tmp_path / "run" / "config.yaml"), "--json"]) == 0
    planned = json.loads(capfd.readouterr().out)["arms"]["tst"]["phases"]["superposition"]
    assert [planned[key] for key in ("positions", "tokens", "flops")] == [
        done[key] for key in ("positions", "tokens", "flops")
    ]

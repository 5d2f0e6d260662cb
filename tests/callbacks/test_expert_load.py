"""A mixture of experts through both phases of the real command: what is logged of its experts, also after stops."""

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.test_resume import assert_same_run, killed_at, signal_at

EXPERTS, LAYERS, CHOSEN = 4, 2, 2
MIXTURE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "num_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "moe_intermediate_size": 32,
    "router_aux_loss_coef": 0.05,
}
# Logged every third step, so that sums stand in the checkpoints of every fourth.
CHANGES: dict[str, Any] = {
    "model__config": {"class_path": "transformers.Qwen3MoeConfig", "init_args": MIXTURE},
    "callbacks__expert_load": {"class_path": "tst_lightning.callbacks.ExpertLoad"},
    "trainer__log_every_n_steps": 3,
    "trainer__val_check_interval": 4,
}


def logged(folder: Path) -> dict[int, dict[str, str]]:
    """What was logged of experts, by step, over all starts of the run; of a step that was repeated, the later."""
    rows: dict[int, dict[str, str]] = {}
    for path in sorted((folder / "csv").glob("version_*/metrics.csv")):
        with open(path) as file:
            for row in csv.DictReader(file):
                found = {key: value for key, value in row.items() if value and key.startswith("experts/")}
                if found:
                    rows.setdefault(int(row["step"]), {}).update(found)
    return rows


def test_a_mixture_trains_through_both_phases_and_stops(fit: Any, tmp_path: Path) -> None:
    code, said = fit("whole", **CHANGES)
    assert code == 0, said
    rows = logged(tmp_path / "whole")
    assert list(rows) == [2, 5, 8, 11, 14, 17]
    for row in rows.values():
        values = {key: float(value) for key, value in row.items()}
        assert CHOSEN < values["experts/balance_loss"] < 1.5 * CHOSEN
        assert sum(values[f"experts/load/{expert}"] for expert in range(EXPERTS)) == pytest.approx(EXPERTS)
        for layer in range(LAYERS):
            assert values[f"experts/load_min/{layer}"] <= 1 <= values[f"experts/load_max/{layer}"] <= EXPERTS / CHOSEN
        assert values["experts/load_max"] == max(values[f"experts/load_max/{layer}"] for layer in range(LAYERS))
        assert values["experts/load_min"] == min(values[f"experts/load_min/{layer}"] for layer in range(LAYERS))
        assert 0 <= values["experts/unused"] < 1
    events = EventAccumulator(str(tmp_path / "whole" / "tensorboard"), size_guidance={"images": 0}).Reload()
    pictures = events.Images("experts/loads")
    assert [(picture.width, picture.height) for picture in pictures] == [(EXPERTS, LAYERS)] * 5
    for stop in (9, 13):  # the last step of superposition, and amid the steps between two logs
        code, said = fit("pieces", "--ckpt_path", "last", *signal_at(stop), **CHANGES)
        assert code == 128 + signal.SIGTERM, said
    assert fit("pieces", "--ckpt_path", "last", **CHANGES)[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "pieces", logged=6)
    assert logged(tmp_path / "pieces") == rows


@pytest.mark.slow
@pytest.mark.distributed
def test_loads_are_of_all_ranks_and_micro_batches(tmp_path: Path, shards: Path) -> None:
    changes = CHANGES | {"trainer__accelerator": "cpu", "trainer__devices": 2, "trainer__strategy": "ddp"}
    changes |= {"trainer__accumulate_grad_batches": 2, "trainer__val_check_interval": 8}
    left = killed_at(tmp_path / "two", shards, 10, "training", **changes)
    assert left["global_step"] == 8
    positions = 4 * 16
    # Of two steps since the last log, two micro-batches each, on two ranks.
    assert left["expert_load"]["micro_batches"] == 4
    assert left["expert_load"]["loads"].sum(1).tolist() == [8 * positions * CHOSEN] * LAYERS
    assert left["expert_load"]["balance"] / 8 == pytest.approx(CHOSEN, rel=0.5)
    for row in logged(tmp_path / "two").values():
        assert CHOSEN < float(row["experts/balance_loss"]) < 1.5 * CHOSEN
        assert sum(float(row[f"experts/load/{expert}"]) for expert in range(EXPERTS)) == pytest.approx(EXPERTS)

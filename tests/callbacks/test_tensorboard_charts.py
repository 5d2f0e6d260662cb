"""Losses over compute and over data in real event files, of a run that crashed, was stopped, and went on."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent
from tensorboard.plugins.custom_scalar import layout_pb2
from transformers import LlamaConfig

from tests.conftest import SEQ_LEN, tiny_config
from tests.test_resume import signal_at
from tst_lightning.__main__ import main
from tst_lightning.callbacks.tensorboard_charts import LAYOUT
from tst_lightning.flops import closed_form_flops_per_row

ROWS, BAG, STEPS, SWITCH = 32, 4, 20, 10
# Large enough for a step to take more than one GFLOP.
SIZES = {"hidden_size": 128, "intermediate_size": 384}
CHANGES = {f"model__config__init_args__{key}": value for key, value in SIZES.items()} | {"data__batch_size": ROWS}
CONFIG = LlamaConfig(vocab_size=320, num_hidden_layers=2, num_attention_heads=2, **SIZES)
PHASE = {"train/superposition/loss": range(SWITCH), "train/recovery/loss": range(SWITCH, STEPS)}


class CrashAt(Callback):
    """Ends the run as a fault would, with no checkpoint, before step ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("crashed")


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def tokens_after(steps: int) -> int:
    return (min(steps, SWITCH) * BAG + max(0, steps - SWITCH)) * ROWS * SEQ_LEN


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> EventAccumulator:
    """Validated every 5 steps; crashed after 13, so that 3 are taken again; stopped after 17, with a checkpoint."""
    folder = tmp_path_factory.mktemp("resumed")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(folder / "run", shards, **CHANGES), sort_keys=False))
    fit = ["fit", "--config", str(path), "--ckpt_path", "last"]
    with pytest.raises(RuntimeError, match="crashed"):
        main([*fit, f'--trainer.callbacks+={{"class_path": "{__name__}.CrashAt", "init_args": {{"step": 13}}}}'])
    assert main([*fit, *signal_at(16)]) == 128 + signal.SIGTERM
    assert main(fit) == 0
    return events(folder / "run")


def test_losses_over_compute_and_data_across_a_crash_and_a_stop(resumed: EventAccumulator) -> None:
    flops_per_step = ROWS * closed_form_flops_per_row(CONFIG, SEQ_LEN)
    assert flops_per_step > 10**9

    def done(scalars: list[ScalarEvent], steps: list[int]) -> dict[str, list[tuple[int, float]]]:
        values = [event.value for event in scalars]
        return {
            "gflop": [(flops_per_step * k // 10**9, value) for k, value in zip(steps, values, strict=True)],
            "token": [(tokens_after(k), value) for k, value in zip(steps, values, strict=True)],
        }

    # A point logged with step k is of k + 1 steps done.
    for tag, steps in PHASE.items():
        plain = resumed.Scalars(tag)
        first, again = list(steps), [10, 11, 12] if tag == "train/recovery/loss" else []
        assert [event.step for event in plain] == [*again, *first], "none lost, and none twice but what was repeated"
        assert [event.value for event in plain[: len(again)]] == [e.value for e in plain[len(again) :][: len(again)]]
        for axis, expected in done(plain, [event.step + 1 for event in plain]).items():
            found = resumed.Scalars(tag.replace("train/", f"train_by_{axis}/"))
            assert [(event.step, event.value) for event in found] == expected, axis
    for score in ("loss", "perplexity", "bits_per_byte"):
        for axis, expected in done(resumed.Scalars(f"val/{score}"), [5, 10, 15, 20]).items():
            found = resumed.Scalars(f"val_by_{axis}/{score}")
            assert [(event.step, event.value) for event in found] == expected, (axis, score)


def test_layout_groups_what_there_is(resumed: EventAccumulator) -> None:
    written = resumed.Tensors("custom_scalars__config__")
    layouts = [layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]) for event in written]
    assert len(layouts) == 3 and layouts[0] == layouts[1] == layouts[2], "one a start, all the same"
    found = {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layouts[0].category
    }
    assert found == {title: {name: tags for name, (_, tags) in charts.items()} for title, charts in LAYOUT.items()}
    tags = resumed.Tags()["scalars"]
    empty = [
        name
        for charts in found.values()
        for name, patterns in charts.items()
        if not any(re.match(pattern, tag) for pattern in patterns for tag in tags)
    ]
    # The run was not evaluated, and the peak of this processor is not known.
    assert empty == ["average accuracy", "accuracy by task", "utilisation, of the device's peak"]

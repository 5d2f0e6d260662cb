"""What a training step does besides the mathematics: nothing that waits for the device, one compilation a shape."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from tests.conftest import needs_compiler
from tst_lightning.modeling import build_causal_lm
from tst_lightning.phases import NextTokenPhase, SuperpositionPhase

READS: dict[int, list[str]] = {}
GRADIENTS: list[bool] = []
SAID: list[int] = []


class _Reads(TorchDispatchMode):
    """Notes every operation by which the host reads a value of the device."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # item(), bool(), tolist(), nonzero() and masks as indices: on a GPU each waits for all that was asked of it.
        if func.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.is_nonzero,
        ):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class HostReads(Callback):
    """Keeps, by step, what was read between the start of a step and that of the next one, in ``READS``; and in
    ``GRADIENTS``, by micro-batch, whether there are gradients before it.
    """

    def __init__(self) -> None:
        self.mode: _Reads | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        GRADIENTS.append(any(weight.grad is not None for weight in pl_module.parameters()))
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
        self.mode = _Reads(READS.setdefault(trainer.global_step, []))
        self.mode.__enter__()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.mode is not None
        self.mode.__exit__(None, None, None)


class Graphs(Callback):
    """Counts graphs compiled so far at the end of every step: in ``SAID``."""

    def on_train_batch_end(self, *_: Any) -> None:
        SAID.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class GpuWaits(Callback):
    """Has torch raise where the host waits for a GPU, in all steps that don't log, from one's start to the next one's."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        on_cpu = {"tokens": torch.zeros(2, 3, dtype=torch.int64), "phase": "any"}
        pinned = trainer.datamodule.on_before_batch_transfer(on_cpu, 0)
        assert pinned["tokens"].is_pinned() and pinned["phase"] == "any"

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        logs = (trainer.global_step + 1) % trainer.log_every_n_steps == 0
        torch.cuda.set_sync_debug_mode("default" if logs or trainer.global_step == 0 else "error")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def callback(kind: type[Callback]) -> str:
    return f'--trainer.callbacks+={{"class_path": "{__name__}.{kind.__name__}"}}'


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_host_reads_nothing_but_where_it_logs_and_no_step_leaves_gradients(fit: Any, accumulate: int) -> None:
    READS.clear()
    GRADIENTS.clear()
    changes = {"trainer__accumulate_grad_batches": accumulate, "trainer__val_check_interval": 20 * accumulate}
    quiet = "--callbacks.progress.init_args.refresh_rate=1000"
    code, said = fit("run", callback(HostReads), quiet, trainer__log_every_n_steps=5, **changes)
    assert code == 0, said
    logging = {4, 9, 14, 19}  # 19 validates and saves too
    assert {step for step, found in READS.items() if found} == logging, READS
    assert READS.keys() == set(range(20))
    assert GRADIENTS == [bool(k % accumulate) for k in range(20 * accumulate)]


def losses(folder: Path) -> list[float]:
    with open(folder / "csv" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return [float(row[key]) for key in row_keys(rows) for row in rows if row[key]]


def row_keys(rows: list[dict[str, str]]) -> list[str]:
    return [key for key in rows[0] if key.endswith("/loss")]


@pytest.mark.slow
@needs_compiler
def test_compiled_layers_train_the_same_model(fit: Any, tiny_run: Path, tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    SAID.clear()
    code, said = fit("compiled", callback(Graphs), model__compile=True)
    assert code == 0, said
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tiny_run), rel=1e-4)
    plain, compiled = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (tiny_run, tmp_path / "compiled")
    )
    assert plain.keys() == compiled.keys()
    # One graph for training, from the first step on, and one for the validation after step 5; the switch at 10 adds none.
    # The loss is compiled in half precision alone.
    assert SAID == [1] * 5 + [2] * 15


@pytest.mark.slow
@needs_compiler
def test_in_half_precision_the_loss_is_compiled_too(fit: Any) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    SAID.clear()
    changes = {"trainer__precision": "bf16-mixed", "trainer__max_steps": 6, "trainer__limit_val_batches": 0}
    code, said = fit("compiled", callback(Graphs), model__compile=True, **changes)
    assert code == 0, said
    # A layer and the loss of bags from the first step on, the loss of single tokens from the switch on.
    assert SAID == [2] * 3 + [3] * 3


@pytest.mark.slow
def test_a_compiler_that_is_not_there_ends_in_one_line(
    fit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/g++",)}):
        code, said = fit("run", model__compile=True)
    assert code == 2, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: the model's layers or loss can't be compiled (") and last.endswith(
        "model.compile to false"
    )


def test_the_weights_of_a_bag_are_sent_to_a_device_once() -> None:
    phase, device = SuperpositionPhase(4), torch.device("meta")
    assert phase._weights_on(device) is phase._weights_on(device)
    assert phase._weights_on(device).device == device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_never_waits_for_a_gpu(fit: Any, precision: str) -> None:
    quiet = "--callbacks.progress.init_args.refresh_rate=1000"
    changes = {"trainer__accelerator": "gpu", "trainer__precision": precision, "trainer__val_check_interval": 20}
    try:
        code, said = fit("run", callback(GpuWaits), quiet, trainer__log_every_n_steps=5, **changes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert code == 0, said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_loss_never_waits_for_a_gpu() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.device("cuda"):
        model = build_causal_lm(config)
        phases = [SuperpositionPhase(4), NextTokenPhase()]
        rows = [torch.randint(0, 64, (2, phase.row_tokens(8))) for phase in phases]
    for phase, tokens in zip(phases, rows, strict=True):
        model(tokens, phase).mean.backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(tokens, phase).mean.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

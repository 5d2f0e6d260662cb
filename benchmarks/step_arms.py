"""The process of one arm of ``step_time.py``: builds its model, then takes steps when it is told to.

Ours is the real ``tst fit`` on a quickstart configuration. The others are what it is held against, each written as
plainly as its source writes it, on the same Llama model, recipe, tokens and number of positions.

    python benchmarks/step_arms.py JSON     (started by step_time.py; see step_worker.py)
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from step_setting import LAID_OUT_STEPS, Arm, Setting, recipe
from step_turns import Turns
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaForCausalLM

from tst_lightning.__main__ import main as tst
from tst_lightning.optim import WarmupStableDecay, decay_groups


@dataclass(frozen=True)
class Task:
    """What a process is to do: one arm of a setting, its reports, and a fresh folder for what it writes."""

    arm: Arm
    setting: Setting
    report_fd: int
    folder: str


# -- ours -----------------------------------------------------------------------------------------------------------


def run_configuration(task: Task) -> dict[str, Any]:
    """A quickstart configuration, all its loggers and callbacks included, at the sizes of the setting."""
    setting, bag_size = task.setting, task.arm.bag_size
    config = recipe("tst" if bag_size > 1 else "baseline")
    if bag_size > 1:
        config["model"]["phases"]["superposition"]["init_args"] |= {"bag_size": bag_size, "share": 0.5}
    if setting.compile:
        config["model"]["compile"] = True
    config |= {"run_dir": f"{task.folder}/run", "seed_everything": setting.seed}
    config["model"]["config"]["init_args"] |= setting.model
    config["data"] |= {
        "shards": setting.shards,
        "seq_len": setting.seq_len,
        "batch_size": setting.batch_size,
        "block_rows": setting.block_rows,
        "seed": setting.seed,
    }
    config["trainer"] |= {
        "accelerator": "gpu" if setting.device == "cuda" else "cpu",
        "precision": setting.precision,
        "max_steps": LAID_OUT_STEPS,
        "val_check_interval": LAID_OUT_STEPS,
        "profiler": {"class_path": "step_gate.FetchClock"},
    }
    gate = {"report_fd": task.report_fd, "device": setting.device}
    config["callbacks"]["step_gate"] = {"class_path": "step_gate.StepGate", "init_args": gate}
    return config


def run_ours(task: Task) -> None:
    path = Path(task.folder) / "run.yaml"
    path.write_text(yaml.safe_dump(run_configuration(task), sort_keys=False))
    sys.exit(tst(["fit", "--config", str(path)]))


# -- loops by hand --------------------------------------------------------------------------------------------------


def next_token_loss(model: LlamaForCausalLM, rows: Tensor, bag_size: int) -> Tensor:
    """Ordinary training as in transformers' documentation: rows (B, L), the model's own loss."""
    return model(input_ids=rows, labels=rows).loss


def paper_listing_loss(model: LlamaForCausalLM, rows: Tensor, bag_size: int) -> Tensor:
    """As the paper's listing has it: s gathers added up, then s cross-entropies of the same float32 logits.

    Args:
        model: (V, d) embedding and LM head.
        rows: (B, s * (L + 1)) ids.
        bag_size: s.
    """
    bags = rows.view(len(rows), -1, bag_size)
    embedded = model.model.embed_tokens(bags[:, :-1, 0])
    for i in range(1, bag_size):
        embedded = embedded + model.model.embed_tokens(bags[:, :-1, i])
    hidden = model.model(inputs_embeds=embedded / bag_size).last_hidden_state
    logits = model.lm_head(hidden).float().flatten(0, 1)
    losses = [F.cross_entropy(logits, bags[:, 1:, i].flatten()) for i in range(bag_size)]
    return sum(losses) / bag_size


def patch_level_loss(model: LlamaForCausalLM, rows: Tensor, bag_size: int) -> Tensor:
    """As patch-level training has it (arXiv 2407.12665): all embeddings, then their mean; one log_softmax, s gathers.

    Args:
        model: (V, d) embedding and LM head.
        rows: (B, s * (L + 1)) ids.
        bag_size: s.
    """
    bags = rows.view(len(rows), -1, bag_size)
    embedded = model.model.embed_tokens(bags[:, :-1]).mean(2)
    hidden = model.model(inputs_embeds=embedded).last_hidden_state
    log_probs = F.log_softmax(model.lm_head(hidden).float().flatten(0, 1), dim=1)
    losses = [F.nll_loss(log_probs, bags[:, 1:, i].flatten()) for i in range(bag_size)]
    return sum(losses) / bag_size


LOSSES: dict[str, Callable[[LlamaForCausalLM, Tensor, int], Tensor]] = {
    "paper listing": paper_listing_loss,
    "patch-level": patch_level_loss,
    "bare PyTorch loop": next_token_loss,
}


def build_model(setting: Setting) -> LlamaForCausalLM:
    """Transformers' own model, with its own choice of attention."""
    with torch.device(setting.device):
        model = LlamaForCausalLM(setting.llama()).train()
    if setting.precision == "bf16-true":
        model.to(torch.bfloat16)
    if setting.compile:
        for layer in model.model.layers:
            layer.compile(fullgraph=True, dynamic=False)
    return model


def build_optimizer(model: LlamaForCausalLM) -> tuple[Optimizer, LambdaLR]:
    """Optimizer and schedule of the recipe."""
    settings = recipe()["model"]
    optimizer = AdamW(decay_groups(model.named_parameters()), **settings["optimizer"]["init_args"])
    schedule = WarmupStableDecay(**settings["lr_schedule"])
    return optimizer, LambdaLR(optimizer, lambda step: schedule.factor(step, LAID_OUT_STEPS))


def batches(rows: Tensor, setting: Setting) -> Iterator[Tensor]:
    """Batches of B rows without end, on the device."""
    while True:
        for batch in rows.split(setting.batch_size):
            if len(batch) == setting.batch_size:
                yield batch.to(setting.device, non_blocking=True)


def run_loop(task: Task) -> None:
    """A training loop as one writes it by hand."""
    setting, arm = task.setting, task.arm
    model = build_model(setting)
    optimizer, scheduler = build_optimizer(model)
    clip = recipe()["trainer"]["gradient_clip_val"]
    mixed = torch.autocast(setting.device, torch.bfloat16, enabled=setting.precision == "bf16-mixed")
    # Read before the turns begin: the tokens are no part of a step's memory.
    rows = setting.rows(arm.bag_size * (setting.seq_len + 1) if arm.bag_size > 1 else setting.seq_len)
    turns = Turns(task.report_fd, setting.device)
    turns.begin()
    for batch in batches(rows, setting):
        with mixed:
            loss = LOSSES[arm.kind](model, batch, arm.bag_size)
        loss.backward()
        clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        turns.step_done()


# -- transformers' trainer ------------------------------------------------------------------------------------------


def run_hf_trainer(task: Task) -> None:
    """``transformers.Trainer`` on the same recipe; it logs every 10 steps, as ours does, but writes nothing."""
    # Imported here: the other arms shall not carry it in their memory.
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class TurnsCallback(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step_done()

    setting, config = task.setting, recipe()
    optimizer, schedule = config["model"]["optimizer"]["init_args"], config["model"]["lr_schedule"]
    beta1, beta2 = optimizer["betas"]
    arguments = TrainingArguments(
        output_dir=f"{task.folder}/trainer",
        per_device_train_batch_size=setting.batch_size,
        max_steps=LAID_OUT_STEPS,
        optim="adamw_torch_fused",
        learning_rate=optimizer["lr"],
        adam_beta1=beta1,
        adam_beta2=beta2,
        weight_decay=optimizer["weight_decay"],
        max_grad_norm=config["trainer"]["gradient_clip_val"],
        lr_scheduler_type="warmup_stable_decay",
        warmup_steps=schedule["warmup_steps"],
        lr_scheduler_kwargs={"num_decay_steps": int(schedule["decay_share"] * LAID_OUT_STEPS), "decay_type": "linear"},
        bf16=setting.precision == "bf16-mixed",
        use_cpu=setting.device == "cpu",
        logging_steps=config["trainer"]["log_every_n_steps"],
        dataloader_drop_last=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=setting.seed,
    )
    rows = [{"input_ids": row, "labels": row} for row in setting.rows(setting.seq_len)]
    trainer = Trainer(build_model(setting), arguments, train_dataset=rows, callbacks=[TurnsCallback()])
    turns = Turns(task.report_fd, setting.device)
    trainer.train()


def main() -> None:
    words = json.loads(sys.argv[1])
    task = Task(Arm(**words.pop("arm")), Setting(**words.pop("setting")), **words)
    torch.manual_seed(task.setting.seed)
    if task.arm.kind == "ours":
        run_ours(task)
    elif task.arm.kind == "HF Trainer":
        run_hf_trainer(task)
    else:
        run_loop(task)


if __name__ == "__main__":
    main()

"""The model card: what the model is, how it was trained, and what was checked, from the checkpoint and the run's record."""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from tst_lightning.compare.units import flops_text, loss_text, tokens_text
from tst_lightning.errors import RunError
from tst_lightning.export.run_facts import RunFacts
from tst_lightning.export.trained import TrainedModel
from tst_lightning.flops import convention

CARD = "README.md"  # its name in the folder
WARNING = "> **Warning:** "
PAPER = "https://arxiv.org/abs/2605.06546"
_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- token-superposition-training
---
"""
_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
rows = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**rows, max_new_tokens=50)[0]))
```
"""


@dataclass
class Exported:
    """What was written.

    Attributes:
        architecture: transformers' class.
        parameters: numbers in the weights, each tied matrix once.
        dtype: of the weights.
        files: sizes of the safetensors files, bytes.
        rows: (B, L) of the ids on which logits were compared.
        tokenizer: whether there is one.
        notes: for the user.
    """

    architecture: str
    parameters: int
    dtype: str
    files: list[int]
    rows: tuple[int, ...]
    tokenizer: bool
    notes: list[str] = field(default_factory=list)


def model_card(trained: TrainedModel, facts: RunFacts, exported: Exported) -> str:
    """The card as Markdown.

    Args:
        trained: the checkpoint.
        facts: of its run.
        exported: what was written and compared.

    Raises:
        RunError: the run's record lacks what a record holds.
    """
    try:
        of_run = _of_run(trained, facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"run.json beside '{trained.path}' is damaged ({error!r}); restore it, or move it away to export without it"
        ) from error
    name = _plain(facts.record["name"]) if facts.record else trained.path.stem
    parts = [f"# {name}, step {trained.step:,}", _summary(trained, exported)]
    if warning := sampling_warning(trained):
        parts.append(f"{WARNING}{warning}")
    if exported.tokenizer:
        parts.append(_USE.strip())
    parts += ["## Training", *_of_checkpoint(trained, facts), *of_run, "## Checked", _checked(exported)]
    return _HEAD + "\n" + "\n\n".join(parts) + "\n"


def sampling_warning(trained: TrainedModel) -> str | None:
    """Why a checkpoint can't be sampled from yet; None if it can."""
    phase = trained.superposed
    if phase is None:
        return None
    return (
        f"the checkpoint is from phase '{_plain(phase.name)}', in which positions read and predict bags of {phase.bag_size}"
        " tokens: text can't be sampled from it yet. For that, take one from the recovery phase, where single tokens are"
        " learned"
    )


def _summary(trained: TrainedModel, exported: Exported) -> str:
    how = "ordinary next-token training"
    if any(phase.bag_size > 1 for phase in trained.phases):
        how = f"[Token Superposition Training (arXiv 2605.06546)]({PAPER})"
    return (
        f"A base language model, `{exported.architecture}` with {exported.parameters:,} parameters in {exported.dtype},"
        f" pretrained {_begin(trained)} by {how} with tst-lightning. It is an ordinary model: transformers alone runs it."
    )


def _begin(trained: TrainedModel) -> str:
    if trained.begun_from is None:
        return "from scratch"
    folder, sha256 = (trained.begun_from[key] for key in ("folder", "sha256"))
    return f"on from the weights of {_plain(PurePath(folder).name)} (sha256 of its safetensors `{sha256}`)"


def _chosen(settings: dict[str, Any]) -> list[str]:
    """What a phase was built with; of a phase within it the class, and the same."""
    chosen = [
        _chosen(value) if isinstance(value, dict) else [str(value)] for key, value in settings.items() if key != "share"
    ]
    return [word for words in chosen for word in words]


def _of_checkpoint(trained: TrainedModel, facts: RunFacts) -> list[str]:
    """What training took up to the checkpoint, by phase."""
    lines = [f"Step {trained.step:,} of {trained.total_steps:,}."]
    if not trained.phases:
        return [*lines, "The run had no meter of its FLOPs and tokens."]
    table = ["| phase | objective | steps | bag size | tokens | positions | FLOPs | seconds |", "|---" * 8 + "|"]
    recorded = {phase["name"]: phase for phase in facts.record["phases"]} if facts.record else {}
    for phase in trained.phases:
        steps = objective = "?"
        if planned := recorded.get(phase.name):
            steps = f"{min(trained.step - planned['first_step'], planned['steps']):,}"
            objective = ", ".join([planned["class"].rpartition(".")[2], *_chosen(planned["settings"])])
        table.append(
            f"| {_plain(phase.name)} | {_plain(objective)} | {steps} | {phase.bag_size} | {phase.tokens:,} |"
            f" {phase.positions:,} | {phase.flops:.4g} | {phase.seconds:,.0f} |"
        )
    tokens, flops = (sum(getattr(phase, key) for phase in trained.phases) for key in ("tokens", "flops"))
    return [
        *lines,
        "\n".join(table),
        f"In all {tokens_text(tokens)} tokens read and {flops_text(flops)} computed; FLOPs are of"
        f" {convention(trained.attention)}.",  # type: ignore[arg-type]
    ]


def _of_run(trained: TrainedModel, facts: RunFacts) -> list[str]:
    """What the run's record adds: loss, settings, data and versions."""
    record, point = facts.record, facts.point
    if record is None:
        return ["No record of the run was at hand."]
    loss = "There was no validation at this step."
    if point is not None:
        more = [("perplexity", point.perplexity), ("bits per byte", point.bits_per_byte)]
        listed = "".join(f", {name} {value:.4f}" for name, value in more if value is not None)
        loss = f"Validation loss at this step, nats a token on the next token: **{loss_text(point.loss)}**{listed}."
    schedule = ", ".join(f"{key} {value}" for key, value in record["lr_schedule"].items())
    settings = {
        "optimizer": f"{record['optimizer']}, learning rate {record['learning_rate']:g}",
        "learning-rate schedule": schedule,
        "positions a step": f"{record['batch']['positions_per_step']:,} in rows of {record['seq_len']:,}",
        "precision": record["precision"],
        "seed": record["seed"],
        "device": f"{record['device']} ({record['device_name']})",
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    }
    return [
        loss,
        _list(settings),
        "## Data",
        _list(_data(trained, record)),
    ]


def _data(trained: TrainedModel, record: dict[str, Any]) -> dict[str, str]:
    read = {
        f"corpus {name}": f"{corpus['share']:.1%} of the tokens, {trained.corpora.get(name, 0):,} read of"
        f" {corpus['available']:,}"
        for name, corpus in record["corpora"].items()
    }
    hashes = {
        f"{words} sha256": f"`{record[key]}`"
        for key, words in (
            ("train_sha256", "training"),
            ("val_sha256", "validation"),
            ("tokenizer_sha256", "tokenizer"),
        )
    }
    return read | hashes


def _checked(exported: Exported) -> str:
    rows, positions = exported.rows
    ids = "of text" if exported.tokenizer else "spread over the vocabulary"
    return (
        f"Before this folder appeared, a fresh process loaded it by transformers {version('transformers')} and torch"
        f" {version('torch')} alone, on a CPU: every weight, and all logits of {rows} x {positions} ids {ids}, were the"
        f" checkpoint's in {exported.dtype}, bit for bit."
    )


def _list(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in facts.items())


def _plain(value: Any) -> str:
    """Text that stays one line of a table or list, and brings no markup of its own."""
    return " ".join(str(value).split()).translate({ord(c): f"\\{c}" for c in "|<>[]"})

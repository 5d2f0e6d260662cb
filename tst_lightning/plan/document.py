"""A plan as data: what the JSON holds and the page is written from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tst_lightning.errors import ConfigError
from tst_lightning.flops import convention
from tst_lightning.modeling import count_parameters
from tst_lightning.phases import NextTokenPhase, PhaseStrategy
from tst_lightning.plan.arms import Arm, Planner, two_phases
from tst_lightning.plan.budget import Budget, Speed
from tst_lightning.plan.memory import measure
from tst_lightning.plan.recommend import Recommendation, recommend
from tst_lightning.plan.setting import Setting
from tst_lightning.published import SOURCE, Cell

FORMAT = 1


@dataclass(frozen=True)
class Wishes:
    """What the user decided.

    Attributes:
        budget: to spend on each arm.
        cell: bag size and ratio of TST; None for the configuration's own phases, or else the recommended ones.
        weighting: of the target bag, with a cell.
        speed: of one device; None where time can't be told.
        price: of a device for an hour, in the user's currency.
    """

    budget: Budget
    cell: Cell | None = None
    weighting: str = "uniform"
    speed: Speed | None = None
    price: float | None = None


def make_plan(setting: Setting, wishes: Wishes) -> tuple[dict[str, Any], Recommendation]:
    """Lays out the baseline, TST as wished for, and TST as recommended where that is another.

    Args:
        setting: model, batch, devices, data.
        wishes: budget and choices.

    Returns:
        The plan as JSON can hold it: ``parameters``, ``budget``, ``arms`` (each with ``steps``, ``tokens``, ``flops``, in
        all and by phase), ``data``, ``memory``, ``recommendation``, ``notes``; and the recommendation with its surface.

    Raises:
        ConfigError: a budget, shares or sizes that make no run.
    """
    planner = Planner(setting)
    ordinary: dict[str, PhaseStrategy] = {"next_token": NextTokenPhase()}
    flops_per_step = planner.flops_per_step(ordinary["next_token"])
    steps, said = wishes.budget.in_steps(flops_per_step, setting.positions_per_step, wishes.speed, setting.steps)
    baseline = planner.arm("baseline", ordinary, steps)
    parameters = count_parameters(setting.config)
    unique = setting.unique_tokens
    if unique is None and setting.corpora:
        # Of a mixture, what could be read before its scarcest part comes again.
        unique = round(min(corpus.manifest.train.tokens / corpus.share for corpus in setting.corpora))
    advice = recommend(parameters.total, baseline.total("positions"), parameters.active < parameters.total, unique)
    arms = [baseline]
    advised = None
    if advice.cell is not None and _superposes(advice.cell, steps):
        advised = two_phases(advice.cell, advice.weighting or "uniform")
    is_baseline = all(isinstance(phase, NextTokenPhase) for phase in setting.phases.values())
    wanted: Mapping[str, PhaseStrategy] | None = None if is_baseline else setting.phases
    if wishes.cell is not None:
        if not _superposes(wishes.cell, steps):
            raise ConfigError(f"--ratio {wishes.cell.ratio:g} of {steps:,} steps is less than one; give more of either")
        wanted = two_phases(wishes.cell, wishes.weighting)
    if wanted or advised:
        arms.append(planner.arm("tst", wanted or advised, steps))  # type: ignore[arg-type]
    if wanted and advised:
        recommended = planner.arm("recommended", advised, steps)
        if not _alike(recommended, arms[-1], steps):
            arms.append(recommended)
    phases = [ordinary["next_token"], *(wanted or advised or {}).values()]
    document: dict[str, Any] = {
        "format": FORMAT,
        "source": setting.source,
        "model": {
            "class": f"{type(setting.config).__module__}.{type(setting.config).__qualname__}",
            "config": setting.config.to_diff_dict(),
        },
        "parameters": parameters._asdict(),
        "budget": {"given": said, "steps": steps},
        "batch": {
            "seq_len": setting.seq_len,
            "micro_batch_rows": setting.batch_size,
            "accumulate_grad_batches": setting.accumulate,
            "devices": setting.devices,
            "positions_per_step": setting.positions_per_step,
        },
        "flops_convention": convention(setting.attention),
        "flops_per_step": flops_per_step,
        "speed": wishes.speed and asdict(wishes.speed),
        "arms": {arm.name: _arm(arm, wishes) for arm in arms},
        "data": {"unique_tokens": unique, "block_rows": setting.block_rows},
        "memory": {
            "layout": setting.layout,
            "precision": setting.precision,
            "activation_checkpointing": setting.checkpointing,
            "bytes": asdict(measure(setting, phases)),
        },
        "recommendation": _recommendation(advice),
    }
    return document | {"notes": _notes(document, arms, setting)}, advice


def _superposes(cell: Cell, steps: int) -> bool:
    """Whether a ratio leaves at least a step of so many for superposition."""
    return int(steps * cell.ratio) > 0


def _alike(one: Arm, other: Arm, steps: int) -> bool:
    """Whether two arms are the same bags at the same steps, within what a ratio of two decimals can say."""
    ones, others = list(one.phases.values()), list(other.phases.values())
    return [phase.bag_size for phase in ones] == [phase.bag_size for phase in others] and all(
        abs(a.first_step - b.first_step) <= steps / 200 for a, b in zip(ones, others, strict=True)
    )


def _arm(arm: Arm, wishes: Wishes) -> dict[str, Any]:
    hours = None if wishes.speed is None else arm.total("flops") / wishes.speed.flops_per_second / 3600
    return {
        **{name: arm.total(name) for name in ("steps", "tokens", "positions", "flops", "hardware_flops")},
        "phases": {name: asdict(phase) for name, phase in arm.phases.items()},
        "unique_tokens_needed": arm.tokens_needed,
        "passes": arm.passes,
        "block_rows": arm.block_rows,
        "device_hours": hours,
        "cost": None if hours is None or wishes.price is None else hours * wishes.price,
    }


def _recommendation(advice: Recommendation) -> dict[str, Any]:
    return {
        "superposition": advice.superposition,
        "bag_size": advice.cell and advice.cell.bag_size,
        "superposition_ratio": advice.cell and advice.cell.ratio,
        "weighting": advice.weighting,
        "expected_loss_difference": advice.expected_difference,
        "nearest_published_difference": advice.nearest_difference,
        "basis": advice.basis,
        "times_outside_the_published_range": advice.outside,
        "reasons": advice.reasons,
        "source": SOURCE,
    }


def _notes(document: dict[str, Any], arms: list[Arm], setting: Setting) -> list[str]:
    notes = []
    flops = {arm.total("flops") for arm in arms}
    if max(flops) > 1.001 * min(flops):
        notes.append("The arms take equally many steps, but not equally many FLOPs: their phases cost differently.")
    if document["recommendation"]["superposition"] == "full" and len(arms) == 1:
        notes.append("Of so few steps none is left for superposition at the recommended ratio.")
    for arm in arms:
        if setting.block_rows not in (None, arm.block_rows):
            notes.append(
                f"'{arm.name}' needs data.block_rows {arm.block_rows} (now {setting.block_rows}); give every run that is to"
                " be compared the same."
            )
        if arm.passes is not None and arm.passes > 1:
            notes.append(
                f"'{arm.name}' reads the data {arm.passes:.2f} times. TST gains by reading more text; what repeated text"
                " gives is not in the published tables."
            )
    if document["data"]["unique_tokens"] is None:
        notes.append("How much unique data there is was not said (--unique_tokens), and no shards were found.")
    if document["speed"] is None:
        notes.append(
            "Time is not told without the speed of a device: give --device (or --peak_flops) and --mfu, or --like RUN for"
            " what a run of yours measured."
        )
    else:
        notes.append("Time is that of training steps; validation, checkpoints and start-up come on top.")
    notes.append(
        "Memory: states, activations and logits are what tensors take; an allocator's slack, kernels' workspaces and"
        " libraries come on top."
    )
    return notes

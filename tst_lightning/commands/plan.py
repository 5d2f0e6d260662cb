"""``tst plan``: what a run would take, before it is begun."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import Namespace

from tst_lightning.commands.parser import OneLineParser
from tst_lightning.errors import ConfigError
from tst_lightning.plan.shape import Shape

if TYPE_CHECKING:
    from tst_lightning.plan.document import Wishes
    from tst_lightning.plan.setting import Setting

DESCRIPTION = (
    "What the baseline and TST would take (steps, tokens, FLOPs, data, time, memory), and which bag size and ratio the"
    " published results advise. Begins nothing and writes nothing but --figure. After --config, options of `tst fit` may"
    " follow that change it, such as --trainer.max_steps 5000."
)
# Options of `tst fit` that may follow a configuration here too.
_OF_FIT = ("--model.", "--data.", "--trainer.", "--callbacks.", "--loggers.", "--seed_everything", "--run_dir")
# Options for a model without a configuration, and what changes the same in one.
_SIZES = {
    "seq_len": "--data.seq_len",
    "batch_size": "--data.batch_size",
    "accumulate": "--trainer.accumulate_grad_batches",
    "precision": "--trainer.precision",
    "checkpointing": "--model.activation_checkpointing",
    "attention": "--callbacks.flops_meter.attention",
}


@dataclass
class PlanOptions:
    """Options of ``tst plan``.

    Args:
        shape: in place of a configuration, a model by its shape
        hf: in place of a configuration, a Hugging Face folder, config.json or hub name
        steps: budget: optimizer steps of each run
        flops: budget: model FLOPs of each run
        device_hours: budget: hours of one device; needs its speed
        tokens: budget: tokens that the baseline reads
        bag_size: s of TST, with ratio; the configuration's phases, or else the recommended ones, when not given
        ratio: r of TST, its share of the steps
        weighting: of the target bag's tokens, with bag_size and ratio
        unique_tokens: that there are to train on; the configuration's shards when not given
        device: name of the device, such as H100, for its dense bfloat16 peak
        peak_flops: FLOP/s of one device, where its name is not known
        mfu: share of the peak that training reaches
        like: run folder whose measured FLOPs a second and device are taken in place of device and mfu
        price: of one device for one hour
        devices: over all nodes; the configuration's when not given
        layout: how parameters lie on the devices; the configuration's when not given
        seq_len: positions a row (with shape or hf; 2048)
        batch_size: rows of a micro-batch of one device (with shape or hf; 8)
        accumulate: micro-batches a step (with shape or hf; 1)
        precision: as Lightning names it (with shape or hf; bf16-mixed)
        checkpointing: of activations, none, selective or full (with shape or hf)
        attention: how FLOPs count attention (with shape or hf)
        figure: write the published grid with the choice marked to this PNG
    """

    shape: Shape | None = None
    hf: str | None = None
    steps: int | None = None
    flops: float | None = None
    device_hours: float | None = None
    tokens: float | None = None
    bag_size: int | None = None
    ratio: float | None = None
    weighting: str | None = None
    unique_tokens: float | None = None
    device: str | None = None
    peak_flops: float | None = None
    mfu: float | None = None
    like: str | None = None
    price: float | None = None
    devices: int | None = None
    layout: Literal["single", "ddp", "fsdp"] | None = None
    seq_len: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    precision: str | None = None
    checkpointing: Literal["none", "selective", "full"] | None = None
    attention: Literal["full", "causal"] | None = None
    figure: str | None = None


def main(name: str, arguments: list[str]) -> None:
    """Prints a plan.

    Args:
        name: the command's name, for its help.
        arguments: the words after it.

    Raises:
        ConfigError: options or a configuration that make no plan.
    """
    mine, of_fit = _divided(arguments)
    parser = OneLineParser(prog=f"tst {name}", description=DESCRIPTION)
    parser.add_argument(
        "--config", action="append", type=str, metavar="YAML", help="configuration of tst fit; several compose"
    )
    parser.add_class_arguments(PlanOptions, as_group=False)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    options = parser.parse_args(mine)
    _check(options, of_fit)

    # Late: these import torch and transformers, which help and refusals should not wait for.
    from tst_lightning.plan.document import make_plan
    from tst_lightning.plan.figure import draw_recommendation
    from tst_lightning.plan.page import page_text

    wishes = _wishes(options)
    plan, advice = make_plan(_setting(options, of_fit), wishes)
    if options.figure:
        Path(options.figure).write_bytes(draw_recommendation(advice, wishes.cell))
    print(json.dumps(plan, indent=2) if options.json else page_text(plan))


def _divided(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words of this command, and those that change a configuration of ``tst fit``, each with its value."""
    mine: list[str] = []
    of_fit: list[str] = []
    taker = mine
    for word in arguments:
        if word.startswith("--"):
            taker = of_fit if word.startswith(_OF_FIT) else mine
        taker.append(word)
    return mine, of_fit


def _check(options: Namespace, of_fit: list[str]) -> None:
    """Refuses options that contradict each other.

    Raises:
        ConfigError: names them.
    """
    models = [name for name in ("config", "shape", "hf") if options[name] is not None]
    if len(models) != 1:
        given = " and ".join(f"--{name}" for name in models) or "none of them"
        raise ConfigError(f"a plan is made of one of --config, --shape.* and --hf; given: {given}")
    if models == ["config"]:
        beside = [f"--{name}" for name in _SIZES if options[name] is not None]
        if beside:
            raise ConfigError(
                f"{beside[0]} is for --shape and --hf; change the configuration by tst fit's own option, such as"
                f" {_SIZES[beside[0].removeprefix('--')]}"
            )
    elif of_fit:
        raise ConfigError(f"{of_fit[0]} changes a configuration, but none is given (--config)")
    if (options.bag_size is None) != (options.ratio is None):
        raise ConfigError("--bag_size and --ratio are given together, or neither of them")
    if options.bag_size is not None and not 0 < options.ratio < 1:
        raise ConfigError(f"--ratio is {options.ratio:g}; it must lie between 0 and 1")
    if options.weighting is not None and options.bag_size is None:
        raise ConfigError("--weighting goes with --bag_size and --ratio")
    for key in ("devices", "unique_tokens", "price", *_SIZES):
        least = 1 if key != "price" else 0
        if isinstance(options[key], int | float) and not least <= options[key] < float("inf"):
            raise ConfigError(f"--{key} is {options[key]:g}; it must be at least {least}")
    if options.like and any(options[name] is not None for name in ("device", "peak_flops", "mfu")):
        raise ConfigError("--like takes the place of --device, --peak_flops and --mfu; give one or the other")


def _setting(options: Namespace, of_fit: list[str]) -> "Setting":
    changes = {key: options[key] for key in ("devices", "layout") if options[key] is not None}
    if options.unique_tokens is not None:
        changes["unique_tokens"] = int(options.unique_tokens)
    if options.device or options.peak_flops:
        changes["device_type"] = "cuda"
    if options.config:
        from tst_lightning.commands.plan_setting import of_configuration

        words = [word for path in options.config for word in ("--config", path)]
        return of_configuration(words + of_fit, " + ".join(options.config), changes)
    from tst_lightning.commands.plan_model import of_hugging_face, of_shape

    sizes = {key: options[key] for key in _SIZES if options[key] is not None}
    if options.shape:
        return of_shape(Shape(**options.shape.as_dict()), sizes | changes)
    return of_hugging_face(options.hf, sizes | changes)


def _wishes(options: Namespace) -> "Wishes":
    from tst_lightning.plan.budget import Budget, measured_speed, speed_of
    from tst_lightning.plan.document import Wishes
    from tst_lightning.plan.recommend import weighting_for
    from tst_lightning.published import Cell

    cell = None if options.bag_size is None else Cell(options.bag_size, options.ratio)
    return Wishes(
        budget=Budget(options.steps, options.flops, options.device_hours, options.tokens),
        cell=cell,
        weighting=options.weighting or (weighting_for(cell) if cell else "uniform"),
        speed=measured_speed(options.like)
        if options.like
        else speed_of(options.device, options.peak_flops, options.mfu),
        price=options.price,
    )

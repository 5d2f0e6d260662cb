"""What a checkpoint and the run that goes on from it must agree in, and the random state that passes between them."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tst_lightning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def model_settings(config: "PreTrainedConfig") -> dict[str, Any]:
    """A model's configuration as plain values, what differs from its class's defaults alone."""
    settings = json.loads(config.to_json_string(use_diff=True))
    return {key: value for key, value in settings.items() if key != "transformers_version"}


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's class and values, as plain ones."""
    # Torch adds this one wherever a state is loaded.
    settings = {"class": type(optimizer).__name__, "differentiable": False} | optimizer.defaults
    return json.loads(json.dumps(settings, default=str))


def refuse_another(key: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses settings that would be recorded but not used: weights and optimizer state come from the checkpoint.

    Args:
        key: of the settings, as in the YAML.
        was: when the checkpoint was made.
        now: as asked for.

    Raises:
        ConfigError: they differ; names each that does.
    """
    differing = [name for name in sorted(was.keys() | now.keys()) if was.get(name) != now.get(name)]
    if differing:
        listed = "; ".join(f"{name} was {was.get(name)}, now {now.get(name)}" for name in differing)
        raise ConfigError(
            f"the checkpoint was made with another {key} ({listed}): what is asked for would be recorded but not used;"
            " restore it, or start a new run"
        )


def refuse_other_weights(here: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Refuses a checkpoint whose weights are not the model's by name and shape.

    Raises:
        ConfigError: names the first that differs.
    """
    shapes, others = ({name: tuple(value.shape) for name, value in state.items()} for state in (here, saved))
    for name in sorted(shapes.keys() | others.keys()):
        if shapes.get(name) != others.get(name):
            raise ConfigError(
                f"the checkpoint is of another model: '{name}' has shape {others.get(name, 'none')} in it,"
                f" {shapes.get(name, 'none')} here; restore model.config (for an extra head model.phases), or start a new"
                " run"
            )


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators, of the CPU and of this process' GPU if it has one."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Sets torch's generators to a state of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])

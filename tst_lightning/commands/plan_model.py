"""What a plan is made for, from a model's shape or its Hugging Face configuration, and options for the rest.

Apart from :mod:`tst_lightning.commands.plan_setting`, so that such a plan does not wait for Lightning's import.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from tst_lightning.commands.parser import one_line
from tst_lightning.errors import ConfigError
from tst_lightning.phases import NextTokenPhase
from tst_lightning.plan.setting import Setting
from tst_lightning.plan.shape import Shape, config_of_shape

_SEQ_LEN = 2048  # of the published runs


def of_shape(shape: Shape, given: dict[str, Any]) -> Setting:
    """A setting of a model's shape alone.

    Args:
        shape: of the model.
        given: attributes of the setting that the user gave.

    Raises:
        ConfigError: sizes that make no model.
    """
    seq_len = given.get("seq_len", _SEQ_LEN)
    config = config_of_shape(shape, seq_len)
    return _of_model(config, "a shape", given)


def of_hugging_face(name: str, given: dict[str, Any]) -> Setting:
    """A setting of the model that a Hugging Face folder, config.json or hub name describes.

    Args:
        name: of it.
        given: attributes of the setting that the user gave.

    Raises:
        ConfigError: there is none, or it is of no causal LM.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # whatever files, network and transformers say
        reason = one_line(f"{type(error).__name__}: {error}")[:200]
        raise ConfigError(
            f"--hf {name} is no configuration of a model ({reason}); name a folder or config.json"
        ) from error
    return _of_model(config, name, given)


def _of_model(config: PreTrainedConfig, source: str, given: dict[str, Any]) -> Setting:
    facts: dict[str, Any] = {"seq_len": _SEQ_LEN, "batch_size": 8, "precision": "bf16-mixed", "device_type": "cuda"}
    facts |= given
    facts.setdefault("layout", "single" if facts.get("devices", 1) == 1 else "ddp")
    return Setting(source=source, config=config, phases={"next_token": NextTokenPhase()}, steps=None, **facts)

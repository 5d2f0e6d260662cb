"""A run that begins from a folder's model: the folder's configuration is the run's, whatever the YAML's is."""

import inspect
from typing import Any

from jsonargparse import Namespace

from tst_lightning.modeling import read_config


def take_config(model: Namespace) -> str | None:
    """Leaves ``model.config`` aside where there is ``model.initial_weights``, so that any YAML serves for any folder.

    Args:
        model: the options of the module, parsed; its ``config`` is set to None.

    Returns:
        What was left aside and differs from the folder's, for the user; None if there is nothing of the kind.

    Raises:
        ConfigError: there is no model in the folder.
    """
    folder, given = model.initial_weights, model.config
    if folder is None:
        return None
    model.config, theirs = None, read_config(folder)
    if given is None:
        return None
    kind, name = type(theirs), given.class_path.rpartition(".")[2]
    said = f"the model is that of '{folder}'; model.config is left aside"
    if name != kind.__name__:
        return f"{said}: class {name}, {kind.__name__} in the folder"
    defaults = inspect.signature(kind).parameters
    differing = [
        f"{key} {value}, {getattr(theirs, key, None)} in the folder"
        for key, value in (given.get("init_args") or {}).items()
        if value != getattr(theirs, key, None) and value != _default(defaults, key)
    ]
    return f"{said}: {'; '.join(differing)}" if differing else None


def _default(parameters: Any, key: str) -> Any:
    """What the parser puts in where nothing was given."""
    return parameters[key].default if key in parameters else None

"""What no machine, or not this one, can do: refused before it fills the memory or starts a thousand processes."""

import os
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from tst_lightning.commands.parser import shown
from tst_lightning.errors import ConfigError
from tst_lightning.modeling import count_parameters

# So many are allowed however few the cores: ranks to try things out, readers because they mostly wait.
_LEAST_RANKS, _LEAST_READERS = 4, 16
_LARGEST_SEED = 2**32 - 1
_MOST_BATCHES = 10**12  # a year of them at 30,000 a second
_LARGEST_INT = 2**63 - 1  # what torch and numpy can count to


def check_numbers(config: Namespace) -> None:
    """Checks the numbers that would be taken without a word, and do harm.

    Args:
        config: parsed, nothing of it built.

    Raises:
        ConfigError: a seed or size out of range.
    """
    for key, seed in {"seed_everything": config.seed_everything, "data.seed": config.data.get("seed")}.items():
        if seed is not None and not 0 <= seed <= _LARGEST_SEED:
            raise ConfigError(f"{key} is {shown(seed)}; it must lie between 0 and {_LARGEST_SEED:,}")
    for key in ("log_every_n_steps", "accumulate_grad_batches"):
        if (value := config.trainer[key]) is not None and value < 1:
            raise ConfigError(f"trainer.{key} is {shown(value)}; it must be at least 1")
    steps, accumulate = config.trainer.max_steps or 0, config.trainer.accumulate_grad_batches or 1
    if steps * accumulate > _MOST_BATCHES:
        raise ConfigError(
            f"trainer.max_steps is {shown(steps)} and accumulate_grad_batches {shown(accumulate)}: no run takes so many"
            f" batches; at most {_MOST_BATCHES:,} in all"
        )
    for group in ("data", "trainer"):
        for key, value in config[group].items():
            if isinstance(value, int) and abs(value) > _LARGEST_INT:
                raise ConfigError(f"{group}.{key} is {shown(value)}; it must lie within 64 bits")


def check_processes(config: Namespace) -> None:
    """Checks the numbers of processes, apart from :func:`check_numbers`: a plan may be made for another machine.

    Args:
        config: parsed, no trainer built of it.

    Raises:
        ConfigError: more processes than this machine can run.
    """
    cores = os.cpu_count() or 1
    ranks, readers = max(_LEAST_RANKS, cores), max(_LEAST_READERS, cores)
    devices, workers = str(config.trainer.devices), config.data.get("num_workers") or 0
    on_cpu = config.trainer.accelerator == "cpu" or not torch.cuda.is_available()
    if on_cpu and devices.isdecimal() and int(devices) > ranks:
        raise ConfigError(
            f"trainer.devices is {devices}; on the CPU of this machine at most {ranks} processes make sense"
        )
    if not 0 <= workers <= readers:
        raise ConfigError(f"data.num_workers is {workers}; it must lie between 0 and {readers} on this machine")


def check_memory(model_config: Any, data: Any, trainer: Trainer) -> str:
    """Refuses a model or a batch that can't fit, by bounds that any training exceeds.

    At two bytes each: weights and gradients, and one hidden state of each layer and position.

    Args:
        model_config: Hugging Face configuration of the model.
        data: the data module.
        trainer: built, for its devices.

    Returns:
        The sizes in words, for the message if it does not fit after all.

    Raises:
        ConfigError: names what does not fit, and its size; or no model can be built.
    """
    device = trainer.strategy.root_device
    if device.type == "cuda":
        where, here = "the GPUs have", torch.cuda.get_device_properties(device).total_memory * trainer.world_size
    else:
        where = "this machine has"
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * trainer.num_nodes
    parameters = count_parameters(model_config).total
    if 4 * parameters > here:
        raise ConfigError(
            f"the model has {parameters:.4g} parameters, whose weights and gradients take {4 * parameters / 1e9:,.0f} GB or"
            f" more; {where} {here / 1e9:,.0f} GB: make model.config.init_args smaller"
        )
    positions = data.batch_size * data.seq_len
    states = 2 * positions * getattr(model_config, "hidden_size", 1) * getattr(model_config, "num_hidden_layers", 1)
    if states > here:
        raise ConfigError(
            f"a micro-batch of {data.batch_size:,} rows of {data.seq_len:,} positions needs {states / 1e9:,.0f} GB or more;"
            f" {where} {here / 1e9:,.0f} GB: lower data.batch_size, and raise trainer.accumulate_grad_batches instead"
        )
    return f"{parameters:,} parameters, micro-batches of {data.batch_size:,} rows of {data.seq_len:,} positions"

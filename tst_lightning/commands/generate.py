"""``tst generate DIR_OR_CKPT --prompt TEXT``: text from a trained model, through transformers' own generation."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import Namespace

from tst_lightning.commands.parser import OneLineParser
from tst_lightning.errors import ConfigError, RunError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig

    from tst_lightning.export.opened import Opened

DESCRIPTION = (
    "Continues text by a Hugging Face folder or a checkpoint of `tst fit`, and prints prompt and continuation as they come."
    " Takes the likeliest token each time; draws instead where --temperature, --top_k or --top_p is given. Stops at the"
    " end-of-document token, at a --stop text, after --max_new_tokens, or where the model has no more positions."
)


def main(name: str, arguments: list[str]) -> None:
    """Generates, and prints on standard output text alone; notes go to standard error.

    Args:
        name: the command's name, for its help.
        arguments: the words after it.

    Raises:
        ConfigError: options, a model or a prompt that can't be used.
        RunError: the model is damaged, or does not fit the device's memory.
    """
    parser = OneLineParser(prog=f"tst {name}", description=DESCRIPTION)
    parser.add_argument("model", type=str, metavar="DIR_OR_CKPT", help="Hugging Face folder, or a checkpoint")
    parser.add_argument(
        "--prompt", type=str, nargs="+", metavar="TEXT", help="one or several; - reads one, whole, from standard input"
    )
    parser.add_argument("--max_new_tokens", type=int, default=100, help="at most, for each prompt")
    parser.add_argument("--stop", type=str, nargs="+", default=[], metavar="TEXT", help="texts to stop after")
    parser.add_argument(
        "--temperature", type=float, help="draw from softmax(logits / temperature); 1 when only asked to"
    )
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest tokens alone")
    parser.add_argument("--top_p", type=float, help="draw from the likeliest tokens that together reach p alone")
    parser.add_argument("--seed", type=int, help="of the draws; another one each time when not given, and named")
    parser.add_argument(
        "--tokenizer",
        type=str,
        metavar="PATH",
        help="shards' folder or tokenizer.json; the folder's, or that of the run's shards, when not given",
    )
    parser.add_argument("--dtype", type=Literal["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument(
        "--device", type=str, default="auto", help="such as cpu or cuda:1; auto is the accelerator if any"
    )
    given = parser.parse_args(arguments)
    _check(given)
    prompts = [_read_prompt(prompt) for prompt in given.prompt]

    # Late: they import torch and transformers, which help and refusals should not wait for.
    import torch

    from tst_lightning.commands.quiet import quieten
    from tst_lightning.export.opened import find_device, open_model

    quieten()
    device = find_device(given.device)
    opened = open_model(Path(given.model), given.tokenizer, getattr(torch, given.dtype))
    rows = [_encode(opened, prompt) for prompt in prompts]
    for note in opened.notes:
        print(f"note: {note}", file=sys.stderr)
    options = _options(opened, given)
    if options.do_sample:
        seed = torch.seed() % 2**32 if given.seed is None else given.seed
        torch.manual_seed(seed)
        print(f"seed: {seed}", file=sys.stderr)
    try:
        opened.lm.to(device)
        for index, row in enumerate(rows):
            if index:
                print()
            _continue(opened, row.to(device), options)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the model does not fit the memory of {device}; try --dtype bfloat16 or --device cpu"
        ) from error
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise RunError(
            f"no token can be drawn: the logits of '{given.model}', over --temperature, are not all finite; the model"
            " diverged, or the temperature is too near 0"
        ) from error


def _check(given: Namespace) -> None:
    if not given.prompt:
        raise ConfigError("--prompt is not given; name a text to continue, or - to read it from standard input")
    if given.prompt.count("-") > 1:
        raise ConfigError("--prompt names standard input (-) more than once")
    if given.max_new_tokens < 1:
        raise ConfigError(f"--max_new_tokens is {given.max_new_tokens}; it must be at least 1")
    if "" in given.stop:
        raise ConfigError("--stop has an empty text in it, which is everywhere")
    if given.temperature is not None and not 0 < given.temperature < float("inf"):
        raise ConfigError(f"--temperature is {given.temperature}; it must be above 0 (without it: the likeliest token)")
    if given.top_k is not None and given.top_k < 1:
        raise ConfigError(f"--top_k is {given.top_k}; it must be at least 1")
    if given.top_p is not None and not 0 < given.top_p <= 1:
        raise ConfigError(f"--top_p is {given.top_p}; it must lie above 0 and not above 1")
    if given.seed is not None and not 0 <= given.seed < 2**63:
        raise ConfigError(f"--seed is {given.seed}; it must be at least 0 and less than 2^63")
    if given.seed is not None and not _draws(given):
        raise ConfigError("--seed is given, but nothing is drawn; add --temperature, --top_k or --top_p")


def _draws(given: Namespace) -> bool:
    return any(option is not None for option in (given.temperature, given.top_k, given.top_p))


def _read_prompt(prompt: str) -> str:
    try:
        if prompt == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        prompt.encode("utf-8")
    except UnicodeError as error:
        raise ConfigError(f"the prompt is no UTF-8 text ({error})") from error
    return prompt


def _positions(opened: "Opened") -> int | None:
    """That the model has; None if it is not limited by them."""
    return getattr(opened.lm.config.get_text_config(), "max_position_embeddings", None)


def _encode(opened: "Opened", prompt: str) -> "Tensor":
    """(1, L) ids of a prompt; an empty one is what a text begins after."""
    import torch

    ids = opened.tokenizer(prompt).input_ids or [opened.tokenizer.bos_token_id]
    if ids == [None]:
        raise ConfigError("the prompt is empty, and the tokenizer names no token that a text begins after")
    most = _positions(opened)
    if most is not None and len(ids) > most:
        raise ConfigError(f"the prompt has {len(ids):,} tokens, the model {most:,} positions; shorten the prompt")
    return torch.tensor([ids])


def _options(opened: "Opened", given: Namespace) -> "GenerationConfig":
    """What was asked for, and nothing of a folder's own manner of sampling but where a text ends."""
    from transformers import GenerationConfig

    ends = opened.lm.generation_config.eos_token_id
    ends = opened.tokenizer.eos_token_id if ends is None else ends
    pad = ends[0] if isinstance(ends, list) else ends
    opened.lm.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad)
    draws = _draws(given)
    how = {
        "temperature": 1.0 if given.temperature is None else given.temperature,
        "top_k": given.top_k or 0,
        "top_p": 1.0 if given.top_p is None else given.top_p,
    }
    return GenerationConfig(
        eos_token_id=ends,
        pad_token_id=pad,
        max_new_tokens=given.max_new_tokens,
        stop_strings=given.stop or None,
        do_sample=draws,
        **(how if draws else {}),
    )


def _continue(opened: "Opened", row: "Tensor", options: "GenerationConfig") -> None:
    import torch
    from transformers import TextStreamer

    asked = options.max_new_tokens
    most = _positions(opened)
    # The last token is predicted, and not read: it needs no position.
    room = asked if most is None else min(asked, most + 1 - row.shape[1])
    streamer = TextStreamer(opened.tokenizer, skip_special_tokens=True)
    found = opened.lm.generate(
        row,
        attention_mask=torch.ones_like(row),
        generation_config=options,
        max_new_tokens=room,
        tokenizer=opened.tokenizer,
        streamer=streamer,
    )
    if room < asked and found.shape[1] == row.shape[1] + room:
        print(f"note: stopped after {room:,} tokens, at the end of the model's {most:,} positions", file=sys.stderr)

"""``tst export CKPT --out DIR``: a checkpoint as an ordinary Hugging Face folder."""

import re
from pathlib import Path
from typing import Literal

from tst_lightning.commands.parser import OneLineParser
from tst_lightning.errors import ConfigError

DESCRIPTION = (
    "Writes a checkpoint as a Hugging Face folder: weights, configurations, tokenizer and model card. Needs no GPU and no"
    " training data. A fresh process then loads it with transformers alone, and it appears only if weights and logits are"
    " those of the checkpoint, bit for bit."
)


def main(name: str, arguments: list[str]) -> None:
    """Exports, and prints what was written and compared.

    Args:
        name: the command's name, for its help.
        arguments: the words after it.

    Raises:
        ConfigError: options, or files they name, that can't be used.
        RunError: the checkpoint is damaged, the folder can't be written, or what is loaded from it differs.
    """
    parser = OneLineParser(prog=f"tst {name}", description=DESCRIPTION)
    parser.add_argument("checkpoint", type=str, metavar="CKPT", help="file, or folder of a sharded one")
    parser.add_argument("--out", type=str, help="folder to write; it appears when it is whole and checked")
    parser.add_argument(
        "--tokenizer",
        type=str,
        metavar="PATH",
        help="shards' folder or tokenizer.json; the run's own shards when not given; none leaves it out",
    )
    parser.add_argument("--dtype", type=Literal["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument(
        "--max_shard_size", type=str, metavar="SIZE", help="of one file, such as 5GB; transformers' own when not given"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the exported model in --out")
    given = parser.parse_args(arguments)
    if not given.out:
        raise ConfigError("--out is not given; name the folder to write, such as --out exports/first")
    size = given.max_shard_size
    if size is not None and not re.fullmatch(r"0*[1-9]\d*(KB|MB|GB|TB)", size):
        raise ConfigError(f"--max_shard_size is '{size}'; write a whole number and KB, MB, GB or TB, such as 5GB")

    # Late: it imports torch and transformers, which help and refusals should not wait for.
    from tst_lightning.export.folder import ExportOptions, export

    options = ExportOptions(given.dtype, given.tokenizer, size, given.overwrite)
    exported = export(Path(given.checkpoint), Path(given.out), options)
    files = "1 file" if len(exported.files) == 1 else f"{len(exported.files)} files"
    print(
        f"exported  {given.out}: {exported.architecture}, {exported.parameters:,} parameters in {exported.dtype}, {files}"
        f" of {sum(exported.files) / 1e6:,.2f} MB"
    )
    also = ", and the ids of text" if exported.tokenizer else ""
    print(
        f"checked   in a fresh process: all weights and the logits of {' x '.join(map(str, exported.rows))} ids are the"
        f" checkpoint's in {exported.dtype}, bit for bit{also}"
    )
    for note in exported.notes:
        print(f"note      {note}")

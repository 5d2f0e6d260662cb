"""`tst prepare`: text -> tokenised shards and a manifest."""

import shlex
import time
from typing import Any

from tst_lightning.commands.parser import OneLineParser
from tst_lightning.shards.build import build
from tst_lightning.shards.manifest import SPLITS, Manifest

# Blocks for which the summary says what whole-block reading leaves out: (bag size, positions).
_BLOCKS = ((8, 512), (16, 2048))


def main(name: str, arguments: list[str]) -> None:
    """Runs the command and prints what was written, or that it was there already.

    Args:
        name: of the command, as typed after `tst`.
        arguments: the words after it.

    Raises:
        UserError: see :func:`tst_lightning.shards.build.build`.
    """
    parser = OneLineParser(prog=f"tst {name}", description="Turns text into tokenised shards, with a manifest.")
    parser.add_argument(
        "inputs", nargs="*", default=[], metavar="INPUT", help="file, folder or glob of text; see --text_field"
    )
    parser.add_function_arguments(build, as_group=False, skip={"inputs", "overwrite"})
    parser.add_argument("--overwrite", action="store_true", help="replace the shards in --out")
    options: dict[str, Any] = parser.parse_args(arguments).as_dict()
    started = time.monotonic()
    manifest, reused = build(**options)
    seconds = time.monotonic() - started
    out = options["out"]
    if reused:
        print(f"reused: '{out}' already holds these inputs with these options")
    else:
        speed = (manifest.train.tokens + manifest.val.tokens) / seconds
        print(f"wrote '{out}' in {seconds:,.1f} s, {speed:,.0f} tokens per second")
    print("\n".join(_summary(manifest, out)))


def _summary(manifest: Manifest, out: str) -> list[str]:
    sources = manifest.sources
    size = sum(chunk["size_bytes"] for split in SPLITS for chunk in getattr(manifest, split).chunks)
    lines = [
        f"documents  {sources['documents']:,} of {sources['bytes'] / 1e6:,.2f} MB, from {sources['files']:,} files "
        f"({sources['dropped_empty']} empty and {sources['dropped_duplicates']} duplicate dropped, "
        f"{sources['skipped_undecodable']} undecodable skipped)",
        f"tokenizer  {manifest.tokenizer}, {manifest.vocab_size:,} ids, {manifest.dtype}",
    ]
    for split in SPLITS:
        info = getattr(manifest, split)
        lines.append(
            f"{split:<10} {info.tokens:,} tokens in {info.documents:,} documents and {len(info.chunks)} chunks, "
            f"{info.bytes_per_token:.2f} bytes per token"
        )
    for bag_size, positions in _BLOCKS:
        block = bag_size * (positions + 1)
        left = ", ".join(f"{getattr(manifest, split).remainder(block):,} of {split}" for split in SPLITS)
        lines.append(
            f"remainder  blocks of {block:,} tokens (bags of {bag_size}, {positions:,} positions) leave out {left}"
        )
    lines.append(f"size       {size / 1e6:,.2f} MB")
    lines.append(f"next       tst fit --config configs/quickstart/tst.yaml --data.shards {shlex.quote(out)}")
    return lines

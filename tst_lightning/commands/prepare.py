"""`tst prepare`: text -> tokenised shards and a manifest; shards measured, and shards checked against their manifest."""

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tst_lightning.commands.parser import OneLineParser
from tst_lightning.corpus.documents import Counts
from tst_lightning.errors import ConfigError, RunError
from tst_lightning.shards.build import build
from tst_lightning.shards.manifest import SPLITS, Manifest, SplitInfo

# Sizes for which the summary says what reading in whole blocks leaves out: (bag size, positions).
_EXAMPLES = ((8, 512), (16, 2048))
_CONFIG, _CONFIG_VOCAB_SIZE = "configs/quickstart/tst.yaml", 1024
_NAMED = 5  # files named when there are more
_LARGEST_DISTANCE, _MOST_PAIRS = 64, 20_000_000


def main(name: str, arguments: list[str]) -> None:
    """Runs the command and prints what was written, that it was there already, or what is wrong with it.

    Args:
        name: of the command, as typed after `tst`.
        arguments: the words after it.

    Raises:
        UserError: see :func:`tst_lightning.shards.build.build` and
            :func:`tst_lightning.mutual_information.measure.measure`; or shards that are not as they were written.
    """
    parser = OneLineParser(prog=f"tst {name}", description="Turns text into tokenised shards, with a manifest.")
    parser.add_argument(
        "inputs", nargs="*", default=[], metavar="INPUT", help="file, folder or glob of text; see --text_field"
    )
    parser.add_argument("--out", type=str, help="folder to write; it appears when it is complete")
    parser.add_function_arguments(build, as_group=False, skip={"inputs", "out", "overwrite"})
    parser.add_argument("--overwrite", action="store_true", help="replace the shards in --out")
    parser.add_argument(
        "--mutual_information",
        "--mutual-information",
        action="store_true",
        help="then measure how much a token of the train split tells about one some tokens further on, fit a power law to"
        " it, by which a bag's tokens can be weighted, and plot it, into --out; with --out alone, of the shards there",
    )
    parser.add_argument(
        "--largest_distance", type=int, help=f"of two tokens in --mutual_information (default: {_LARGEST_DISTANCE})"
    )
    parser.add_argument(
        "--most_pairs",
        type=int,
        help="counted at each distance in --mutual_information; of a larger split a part is read, spread evenly over it"
        f" (default: {_MOST_PAIRS})",
    )
    parser.add_argument(
        "--verify", type=str, metavar="DIR", help="check every byte of finished shards instead; takes no other option"
    )
    options: dict[str, Any] = parser.parse_args(arguments).as_dict()
    defaults = parser.get_defaults().as_dict()
    folder = options.pop("verify")
    if folder is not None:
        if others := [name for name, value in options.items() if value != defaults[name]]:
            raise ConfigError(f"--verify {folder} takes nothing else, but got {', '.join(others)}; give it alone")
        _verify(Path(folder))
        return
    out = options["out"]
    if not out:
        raise ConfigError("--out is not given; name the folder to write, such as --out data/mine")
    measuring = options.pop("mutual_information")
    limits = {"largest_distance": _LARGEST_DISTANCE, "most_pairs": _MOST_PAIRS}
    given = {name: value for name in limits if (value := options.pop(name)) is not None}
    if given and not measuring:
        raise ConfigError(f"--{next(iter(given))} goes with --mutual_information; add that, or leave it out")
    if measuring and all(options[name] == defaults[name] for name in options if name != "out"):
        _measure(Manifest.read(out), Path(out), **limits | given)  # whatever they were made of
        return
    started = time.monotonic()
    manifest, reused = build(**options)
    seconds = time.monotonic() - started
    if reused:
        print(f"reused: '{out}' already holds these inputs with these options")
    else:
        speed = (manifest.train.tokens + manifest.val.tokens) / seconds
        print(f"wrote '{out}' in {seconds:,.1f} s, {speed:,.0f} tokens per second")
    print("\n".join(_summary(manifest, out)), flush=True)
    if measuring:
        _measure(manifest, Path(out), **limits | given)


def _measure(manifest: Manifest, folder: Path, largest_distance: int, most_pairs: int) -> None:
    # Imported here: help and refused arguments need not wait for it.
    from tst_lightning.mutual_information.measure import measure
    from tst_lightning.mutual_information.report import write_report

    started = time.monotonic()
    measurement = measure(manifest, largest_distance, most_pairs)
    print("\n".join(write_report(measurement, manifest, folder)))
    print(f"measured in {time.monotonic() - started:,.1f} s")


def _verify(folder: Path) -> None:
    # Imported here: help and refused arguments need not wait for it.
    from tst_lightning.shards.verify import extra_files, verify_folder

    manifest = Manifest.parse(folder)
    problems = verify_folder(folder)
    chunks = [chunk for split in SPLITS for chunk in getattr(manifest, split).chunks]
    tokens, size = (sum(chunk[key] for chunk in chunks) for key in ("tokens", "size_bytes"))
    print(
        f"checked    '{folder}': manifest.json, tokenizer.json, {len(SPLITS)} index.json, and of {len(chunks):,} chunks of"
        f" {tokens:,} tokens ({size / 1e6:,.2f} MB) size, SHA-256 and that every id is below {manifest.vocab_size:,}"
    )
    if extra := extra_files(manifest):
        print(f"note       no part of the shards, and not read: {_listed(extra)}")
    for problem in problems:
        print(f"damaged    {problem}")
    if problems:
        raise RunError(
            f"{len(problems)} of the files of '{folder}' found not as they were written, listed above; restore them, or"
            f" prepare the shards again: `tst prepare ... --out {folder} --overwrite`"
        )
    print("ok")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(ascii(name) for name in names[:_NAMED]) + more


def _summary(manifest: Manifest, out: str) -> list[str]:
    sources = manifest.sources
    size = sum(chunk["size_bytes"] for split in SPLITS for chunk in getattr(manifest, split).chunks)
    count = {name: sources.get(name, 0) for name in vars(Counts())}
    links = f", {count['skipped_links']} links not followed" if count["skipped_links"] else ""
    # Of one's own text none is looked for, and 0 would read as none being there.
    duplicates = f" and {count['dropped_duplicates']} duplicate" if count["dropped_duplicates"] else ""
    tokenizer = manifest.tokenizer if manifest.tokenizer.isprintable() else ascii(manifest.tokenizer)
    lines = [
        f"documents  {count['documents']:,} of {count['bytes'] / 1e6:,.2f} MB, from {count['files']:,} files "
        f"({count['dropped_empty']} empty{duplicates} dropped, "
        f"{count['skipped_undecodable']} undecodable skipped{links})",
        f"tokenizer  {tokenizer}, {manifest.vocab_size:,} ids, {manifest.dtype}",
    ]
    for split in SPLITS:
        info = getattr(manifest, split)
        lines.append(
            f"{split:<10} {info.tokens:,} tokens in {info.documents:,} documents and {len(info.chunks)} chunks, "
            f"{info.bytes_per_token:.2f} bytes per token"
        )
    lines.append("remainder  left out by reading in whole blocks; `tst fit` prints that of its own sizes. For example,")
    for bag_size, positions in _EXAMPLES:
        train, val = bag_size * (positions + 1), positions + 1
        lines.append(
            f"           bags of {bag_size}, {positions:,} positions: of train {_left_out(manifest.train, train)} in blocks"
            f" of {train:,}, of val {_left_out(manifest.val, val)} in rows of {val:,}"
        )
    lines.append(f"size       {size / 1e6:,.2f} MB")
    lines.append(f"next       {_next_command(manifest, out)}")
    return lines


def _left_out(info: SplitInfo, tokens: int) -> str:
    left = info.remainder(tokens)
    return f"{left:,} tokens ({left / info.tokens:.2%})"


def _next_command(manifest: Manifest, out: str) -> str:
    """A first run on these shards, in a folder of its own, as the quickstart's configuration allows it."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "tst" else "tst"
    if (found := shutil.which("tst")) and Path(program).exists() and Path(found).samefile(program):
        program = "tst"
    name = Path(out).resolve().name or "shards"
    names = (f"runs/{name}{suffix}" for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
    run_dir = next((name for name in names if not Path(name).exists()), "runs/another")
    words = [program, "fit", "--config", _CONFIG, "--run_dir", run_dir, "--data.shards", out]
    if manifest.vocab_size != _CONFIG_VOCAB_SIZE:
        words += ["--model.config.init_args.vocab_size", str(manifest.vocab_size)]
    return shlex.join(words)

"""``tst evaluate MODEL --tasks ... --out FILE``: scores of a checkpoint or an exported model by lm-evaluation-harness."""

import sys
from pathlib import Path
from typing import Any, Literal

from tst_lightning.commands.parser import OneLineParser
from tst_lightning.errors import ConfigError, RunError

DESCRIPTION = (
    "Scores a checkpoint or an exported model on tasks by lm-evaluation-harness, with no examples in the question (0-shot)."
    " Of a checkpoint within its run's folder the scores also go to evaluations/ there, which `tst compare` reads, and to"
    " its TensorBoard over steps, compute and data. A task whose data can't be fetched is named, and the others are scored."
    " Needs the extra: pip install 'tst-lightning[eval]'"
)


def main(name: str, arguments: list[str]) -> None:
    """Evaluates, prints and writes the scores.

    Args:
        name: the command's name, for its help.
        arguments: the words after it.

    Raises:
        ConfigError: options, or files they name, that can't be used; the harness is not installed.
        RunError: the model is damaged; or a task could not be scored, after the scores of the others are written.
    """
    parser = OneLineParser(prog=f"tst {name}", description=DESCRIPTION)
    parser.add_argument(
        "model", type=str, metavar="MODEL", help="checkpoint, file or sharded one's folder; or an export"
    )
    parser.add_argument(
        "--tasks",
        type=str,
        nargs="+",
        default=["paper"],
        metavar="NAME",
        help="the paper's suite of eight, or tasks, groups and tags of the harness (default: paper)",
    )
    parser.add_argument("--out", type=str, metavar="FILE", help="JSON file to write; an earlier one is replaced")
    parser.add_argument(
        "--include_path", type=str, metavar="DIR", help="more task files (YAML); functions that they name are run"
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="score the first N questions of each task alone: a trial, of which the run's folder keeps nothing",
    )
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="answers at a time")
    parser.add_argument(
        "--device", type=str, default="auto", help="such as cpu or cuda:1; auto is the accelerator if any"
    )
    parser.add_argument("--dtype", type=Literal["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument(
        "--tokenizer",
        type=str,
        metavar="PATH",
        help="shards' folder or tokenizer.json; the folder's, or that of the run's shards, when not given",
    )
    given = parser.parse_args(arguments)
    if not given.out:
        raise ConfigError("--out is not given; name the JSON file to write, such as --out scores.json")
    if Path(given.out).is_dir():
        raise ConfigError(f"--out '{given.out}' is a folder; name a JSON file")
    for option in ("limit", "batch_size"):
        if given[option] is not None and given[option] < 1:
            raise ConfigError(f"--{option} is {given[option]}; it must be at least 1")
    if not Path(given.model).exists():
        raise ConfigError(
            f"there is no model at '{given.model}'; name a checkpoint, such as RUN/checkpoints/last.ckpt, or an exported"
            " folder"
        )

    # Late: they import torch, transformers and the harness, which help and refusals should not wait for.
    import torch

    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"evaluation needs lm-evaluation-harness, and {error.name} is not installed; install the extra: pip install"
            " 'tst-lightning[eval]'"
        ) from error
    from tst_lightning.commands.quiet import quieten
    from tst_lightning.evaluation.record import Settings, evaluation, keep_in_run, write_json
    from tst_lightning.evaluation.scores import Scorer
    from tst_lightning.evaluation.tasks import load_tasks
    from tst_lightning.export.opened import find_device, open_model

    quieten()
    device = find_device(given.device)
    tasks = load_tasks(given.tasks, Path(given.include_path) if given.include_path else None)
    for task, why in tasks.failed.items():  # at once: the others may take hours
        print(f"not loaded  {task}: {why}", file=sys.stderr, flush=True)
    opened = open_model(Path(given.model), given.tokenizer, getattr(torch, given.dtype), sampled=False)
    try:
        opened.lm.to(device)
    except torch.OutOfMemoryError as error:
        raise RunError(f"the model does not fit the memory of {device}; try --dtype bfloat16") from error
    scorer = Scorer(opened, tasks.manager, given.batch_size, given.limit)
    scores: dict[str, dict[str, Any]] = {}
    failed = dict(tasks.failed)
    for task, objects in tasks.loaded.items():
        found, why_not = scorer.score(objects)
        scores |= found
        if why_not is not None:
            failed[task] = why_not
    settings = Settings(given.dtype, str(opened.lm.device), given.batch_size, given.limit)
    content = evaluation(given.model, opened, settings, scores, failed)
    write_json(Path(given.out), content)
    kept = ""
    if opened.run_dir is not None and scores and given.limit is None:
        keep_in_run(opened.run_dir, content)
        kept = f", and in {opened.run_dir} for its TensorBoard and `tst compare`"
    _print_scores(content)
    print(f"written  {given.out}{kept}")
    for note in [*opened.notes, *_cut(scores)]:
        print(f"note     {note}")
    if failed:
        hub = (
            "; the Hugging Face hub can't be reached, and data not in its cache can't be fetched"
            if tasks.offline
            else ""
        )
        listed = "; ".join(f"{task} ({why})" for task, why in failed.items())
        raise RunError(f"{len(failed)} of {len(failed) + len(scores)} tasks could not be scored: {listed}{hub}")


def _print_scores(content: dict[str, Any]) -> None:
    scores = content["tasks"]
    width = max(map(len, [*scores, "average"]))
    for task, entry in scores.items():
        accuracy = "no accuracy" if entry["metric"] is None else f"{entry['metric']:<8}  {entry['accuracy']:.4f}"
        spread = "" if entry["stderr"] is None else f" ± {entry['stderr']:.4f}"
        print(f"{task:<{width}}  {accuracy}{spread}  of {entry['n']:,} questions")
    if content["average_accuracy"] is not None:
        print(f"{'average':<{width}}  {'':<8}  {content['average_accuracy']:.4f}  of {len(content['averaged'])} tasks")


def _cut(scores: dict[str, dict[str, Any]]) -> list[str]:
    cut = [f"{task} ({entry['cut']:,} times)" for task, entry in scores.items() if entry["cut"]]
    return [f"questions longer than the model's context lost their beginning: {', '.join(cut)}"] if cut else []

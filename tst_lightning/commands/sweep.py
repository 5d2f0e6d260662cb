"""``tst sweep``: a grid or list of values over any keys of ``tst fit``, as ordinary runs, and what they came to."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from tst_lightning.commands.config_file import check_config_file
from tst_lightning.commands.parser import OneLineParser
from tst_lightning.errors import ConfigError, RunError, Stopped
from tst_lightning.sweep.cases import Case
from tst_lightning.sweep.devices import parse_devices
from tst_lightning.sweep.plan import Plan, make_plan, pairs
from tst_lightning.sweep.pool import Pool
from tst_lightning.sweep.queues import CaseQueue, LocalQueue, StudyQueue
from tst_lightning.sweep.records import is_held, read_ending
from tst_lightning.sweep.report import write_report

DESCRIPTION = """Runs `tst fit` for every combination of values, several at a time, and draws what came out.

The same command goes on where an earlier one ended: finished runs are skipped, stopped ones go on from their checkpoint,
failed ones are left alone until --retry_failed. A YAML for --config holds `fit`, `baseline` (files of `tst fit`), `set`
(key: value, for every run), `grid` (key: list of values, each with each; keys joined by a comma move together) and `list`
(cases, each a mapping of keys to values); what is given on the command line is added to it, and wins."""


def main(name: str, arguments: list[str]) -> None:
    """Runs the cases of a sweep that are still to be run, then reports on all of them.

    Args:
        name: of the command, as typed after ``tst``.
        arguments: the words after it.

    Raises:
        ConfigError: what was asked for can't be run, or a run was refused before any had finished.
        RunError: runs have failed, now or earlier, or are left over with no process at work on them. Those that run
            elsewhere, in a live process, are named and are no error.
        Stopped: a signal came.
    """
    options = _parser(name).parse_args(arguments)
    if not options.out:
        raise ConfigError("--out is not given; name the sweep's folder, such as --out runs/sweep/first")
    devices = parse_devices(options.devices)
    plan = _plan(options)
    states = _states(plan)
    waiting = [case for case in plan.cases if states[case.name] == "waiting"]
    failed = [case for case in plan.cases if states[case.name] == "failed"]
    if options.dry_run:
        _print_cases(plan, states)
        return
    print(f"sweep     {_counted(states)}; {len(devices)} at a time in {plan.out}", flush=True)
    due = [*waiting, *failed] if options.retry_failed else waiting
    try:
        if due:
            Pool(plan, _queue(plan, options, due), devices, lambda line: print(line, flush=True)).run()
    except Stopped as stopped:
        write_report(plan)  # of what has finished
        again = "; --retry_failed takes up failed ones too" if "failed" in _states(plan).values() else ""
        raise Stopped(
            f"{stopped}: {_counted(_states(plan))}; go on with the same command{again}", stopped.exit_code - 128
        ) from stopped
    _finish(plan)


def _parser(name: str) -> OneLineParser:
    parser = OneLineParser(prog=f"tst {name}", description=DESCRIPTION)
    parser.add_argument("--config", type=str, metavar="YAML", help="what to run: fit, baseline, set, grid, list")
    parser.add_argument("--out", type=str, metavar="DIR", help="folder of the sweep; each run's is in it")
    parser.add_argument("--fit", type=str, nargs="+", metavar="YAML", help="files of `tst fit`, composed in this order")
    parser.add_argument(
        "--baseline",
        type=str,
        nargs="+",
        metavar="YAML",
        help="files of the reference, run with the same values and seeds",
    )
    several: Any = {"type": str, "nargs": "+", "action": "extend", "default": []}
    parser.add_argument("--set", **several, metavar="KEY=VALUE", help="the same in every run")
    parser.add_argument(
        "--grid",
        **several,
        metavar="KEY=V1,V2,...",
        help="values to try, each with each of the others'; KEY is as for `tst fit`, or several joined by commas",
    )
    parser.add_argument(
        "--devices",
        type=str,
        default="auto",
        help="auto (every GPU, one run each; else the CPU), cpu:2 (two runs at a time), or GPUs such as 0,1,2,3",
    )
    parser.add_argument(
        "--storage",
        type=str,
        help="share the cases with every `tst sweep` of the same command, on any machine that sees --out: journal:PATH, or"
        " a database as Optuna takes it (extra `sweep`)",
    )
    parser.add_argument(
        "--retry_failed",
        action="store_true",
        help="run failed cases again, and with --storage those of workers that were killed",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the cases and start nothing")
    return parser


def _plan(options: Any) -> Plan:
    content: dict[str, Any] = {}
    if options.config:
        if not Path(options.config).is_file():
            raise ConfigError(f"there is no file '{options.config}' (--config)")
        content = check_config_file(Path(options.config))
    for key in ("fit", "baseline"):
        if options[key]:
            content[key] = options[key]
    for key in ("set", "grid"):
        given = pairs(key, options[key])
        if given and isinstance(content.get(key) or {}, dict):
            content[key] = (content.get(key) or {}) | given
    return make_plan(options.out, content, f"'{options.config}'" if options.config else "the command line")


def _states(plan: Plan) -> dict[str, str]:
    """What the folders say of each case: finished, failed, running, or waiting."""
    states: dict[str, str] = {}
    for case in plan.cases:
        ending = read_ending(plan.run_dir(case), case)
        state = ending.status if ending else "waiting"
        states[case.name] = "running" if state != "finished" and is_held(plan.run_dir(case)) else state
    return states


def _queue(plan: Plan, options: Any, due: list[Case]) -> CaseQueue:
    if not options.storage:
        return LocalQueue(due)
    return StudyQueue(plan, options.storage, options.retry_failed)


def _counted(states: dict[str, str]) -> str:
    count = Counter(states.values())
    words = {"finished": "finished", "failed": "failed", "running": "running elsewhere", "waiting": "waiting"}
    parts = [f"{count[status]} {word}" for status, word in words.items() if count[status]]
    return f"{len(states)} runs, {', '.join(parts)}"


def _print_cases(plan: Plan, states: dict[str, str]) -> None:
    width = max(len(case.name) for case in plan.cases)
    for case in plan.cases:
        print(f"{case.name:<{width}}  {states[case.name]:<8}  {shlex.join(case.arguments())}")
    print(f"{_counted(states)}; nothing was started (--dry_run)")


def _finish(plan: Plan) -> None:
    report = write_report(plan)
    print(f"\n{report.text}\n\nwritten:")
    for file in report.files:
        print(f"  {file}")
    cases = len(plan.cases)
    if running := report.names("running"):
        print(
            f"running elsewhere: {len(running)} of {cases} runs, in other processes: {', '.join(running)}; give the same"
            " command again when these have ended"
        )
    problems = []
    if failed := report.names("failed"):
        problems.append(
            f"{len(failed)} of {cases} runs failed, as listed above; the others are not touched by that. Run them again"
            " by the same command with --retry_failed"
        )
    if left := report.names("waiting"):
        problems.append(
            f"{len(left)} of {cases} runs have not ended, though no process is at work on them: {', '.join(left)}; give"
            " the same command again, with --retry_failed if a worker of --storage was killed"
        )
    if problems:
        raise RunError(". ".join(problems))

"""Mutates the shipped configurations and gives each to ``tst fit``: a run that starts, or an error of one line.

Cases are drawn by :mod:`config_mutations` from the quickstart's YAMLs, as shipped and as a run saves them, shrunk to a
tiny model on tiny real shards. A case ends as

- started: training began (``run.json`` says so, or a step was taken), and the run finished or went on till it was killed,
- ended: it started, and then ended in an error of one line,
- refused: training did not begin, and there is an error of one line on stderr, nothing else there, and exit code 1 or 2,

or it is a failure: a traceback, more than one line, exit 0 without a step, death by a signal, a hang, a flood of
processes. Importing takes seconds, so everything is imported once and each case runs in a fork, in a session, a folder
and an address space of its own; some cases are repeated by the real command, whose verdict must be the same.

    python benchmarks/fuzz_config.py --out benchmarks/results/fuzz_config.json
"""

import argparse
import collections
import contextlib
import io
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from config_mutations import mutate

ROOT = Path(__file__).parent.parent
COMMAND = ("fit", "--config", "config.yaml")
CORPUS = ("argparse", "ast", "calendar", "codecs", "copy", "csv", "dis", "enum", "heapq")
HANG_SECONDS = 60.0
GRACE_SECONDS = 4.0  # from the first step on: enough for validations and checkpoints of a tiny run, and for its end
FIRST_STEP_SECONDS = 20.0  # for the first step itself, once run.json says that training has begun
MEMORY_BYTES = 4 << 30  # of address space, beyond what the imports take
FILE_BYTES = 1 << 30
MOST_PROCESSES = 40
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
LEFT_ALONE = "another process of the run ended"
GOOD = ("started", "ended", "refused")


@dataclass
class Case:
    """One mutated configuration, and what became of it.

    Attributes:
        number: of the case; with the seed it names the mutations.
        base: the configuration that was mutated.
        mutations: what was done to it, in order.
        verdict: one of ``GOOD``, or the kind of failure.
        exit_code: of the process; negative for a signal, None where it was killed by us.
        message: what it said on stderr, without the folder's name.
        seconds: from start to end.
    """

    number: int
    base: str
    mutations: list[str]
    verdict: str = ""
    exit_code: int | None = None
    message: str = ""
    seconds: float = 0.0
    content: bytes = field(default=b"", repr=False)


# -- what is mutated -------------------------------------------------------------------------------------------------


def prepare_shards(folder: Path) -> Path:
    """Real shards of a few standard-library modules, under a vocabulary of 320."""
    sources = [str(Path(sysconfig.get_path("stdlib")) / f"{name}.py") for name in CORPUS]
    options = ["--out", str(folder / "shards"), "--vocab_size", "320", "--val_share", "0.1"]
    command = [sys.executable, "-m", "tst_lightning", "prepare", *sources, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "shards"


def shrunk(path: Path, shards: Path) -> dict[str, Any]:
    """A shipped configuration, with every key that it has, for four steps of a model of two layers."""
    config = yaml.safe_load(path.read_text())
    config["run_dir"] = "run"
    config["model"]["config"]["init_args"] |= {
        **{"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16},
    }
    for phase in config["model"]["phases"].values():
        phase["init_args"] |= {"share": 0.5} if "share" in phase["init_args"] else {}
    config["model"]["lr_schedule"]["warmup_steps"] = 1
    config["data"] |= {"shards": str(shards), "seq_len": 16, "batch_size": 4}
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 2, "log_every_n_steps": 1}
    return config


def resolved(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration as a run saves it: every option named. Parsing it here also imports what parsing needs."""
    from tst_lightning.__main__ import main

    path = folder / "resolve.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main(["fit", "--config", str(path), "--print_config"])
    return yaml.safe_load(printed.getvalue())


def import_everything() -> None:
    """What a run would import, so that forks find it there; starts no thread, since a fork would lose it."""
    import tensorboard.summary.writer.event_file_writer  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import tst_lightning.commands.fit  # noqa: F401

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # brings torch's compiler with it


# -- one case in a process of its own --------------------------------------------------------------------------------


def _limit(extra_memory: int) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + extra_memory,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run_forked(folder: Path) -> int:
    """Forks; the child runs the command in ``folder`` and notes its first optimizer step in a file beside it."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in enumerate((os.devnull, "../out", "../err")):
            os.dup2(os.open(name, os.O_RDONLY if not number else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
        _limit(MEMORY_BYTES)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from torch.optim.optimizer import register_optimizer_step_post_hook

        from tst_lightning import __main__

        stepped = os.path.abspath("../stepped")
        register_optimizer_step_post_hook(lambda *_: open(stepped, "w").close())
        # Ranks beyond the first are started from these, as those of the real command are.
        sys.argv = [__main__.__file__, *COMMAND]
        try:
            code = __main__.main(list(COMMAND))
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        threading._shutdown()  # as at the end of a real process
    finally:
        os._exit(code)


def _run_real(folder: Path) -> int:
    """The same with the real command; its first step is known by ``run.json`` alone."""
    with open(folder / "../out", "wb") as out, open(folder / "../err", "wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "tst_lightning", *COMMAND],
            **{"cwd": folder, "stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, "start_new_session": True},
            preexec_fn=lambda: _limit(MEMORY_BYTES + (12 << 30)),  # it has its imports still to map
        )
    return process.pid


class Running:
    """A case on its way.

    Args:
        case: what to run; gets its verdict here.
        folder: scratch folder of the case.
        start: starts the process in a folder, and gives its id.
    """

    def __init__(self, case: Case, folder: Path, start: Callable[[Path], int]) -> None:
        self.case, self.folder = case, folder
        self._cwd = folder / "cwd"
        self._cwd.mkdir(parents=True)
        (self._cwd / "config.yaml").write_bytes(case.content)
        self._since = time.monotonic()
        self._recorded: float | None = None
        self._stepped: float | None = None
        self._pid = start(self._cwd)

    def done(self) -> bool:
        """Looks once: ends what hangs, and judges what has ended."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        now = time.monotonic()
        if self._stepped is None and (self.folder / "stepped").exists():
            self._stepped = now
        if self._recorded is None and self._is_recorded():
            self._recorded = now
        failure = ""
        if not pid:
            waits = ((self._stepped, GRACE_SECONDS), (self._recorded, FIRST_STEP_SECONDS))
            if any(since is not None and now - since > wait for since, wait in waits):
                failure = "going on"
            elif now - self._since > HANG_SECONDS:
                failure = "hang"
            if self._processes() > MOST_PROCESSES:
                failure = "flood of processes"
            if not failure:
                return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        if not pid:
            os.waitpid(self._pid, 0)
        self.case.exit_code = os.waitstatus_to_exitcode(status) if pid else None
        self.case.seconds = round(now - self._since, 2)
        said = (self.folder / "err").read_text(errors="replace").replace(str(self.folder.parent), "TMP")
        self.case.message = said if len(said) < 6000 else f"{said[:2000]}\n[...]\n{said[-4000:]}"
        self.case.verdict = self._verdict(failure, said)
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def _is_recorded(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self._cwd / "run" / "run.json").read_bytes())["status"] in ("running", "finished")
        return False

    def _processes(self) -> int:
        count = 0
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                count += name.isdigit() and os.getsid(int(name)) == self._pid
        return count

    def _verdict(self, failure: str, said: str) -> str:
        if failure:
            return "started" if failure == "going on" and "Traceback" not in said else failure
        code, started = self.case.exit_code, self._stepped is not None or self._recorded is not None
        assert code is not None
        if code < 0:
            return f"signal {signal.Signals(-code).name}"
        if "Traceback (most recent call last)" in said:
            return "traceback"
        if code == 0:
            finished = "finished  " in (self.folder / "out").read_text(errors="replace")
            return "started" if started or finished else "exit 0 without a step"
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        if started:  # of several processes, those that are left may say that they are
            errors = [line for line in errors if LEFT_ALONE not in line] or errors
        if code not in (1, 2) or len(errors) != 1 or not said.splitlines()[-1].startswith("error: "):
            return f"exit {code} without an error of one line"
        if started:  # warnings may stand before it
            return "ended"
        return "refused" if said == f"{errors[0]}\n" else "more than one line"


def run_all(cases: list[Case], folder: Path, jobs: int, start: Callable[[Path], int], show: bool = True) -> None:
    """Runs cases, some at a time; gives each its verdict."""
    running: list[Running] = []
    waiting = collections.deque(cases)
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.popleft()
            running.append(Running(case, folder / f"case{case.number}", start))
        time.sleep(0.02)
        for each in list(running):
            if each.done():
                running.remove(each)
                if show and each.case.verdict not in GOOD:
                    tail = each.case.message.strip().splitlines()[-1:] or [""]
                    print(
                        f"{each.case.number}: {each.case.verdict}: {each.case.mutations}: {tail[0][:300]}", flush=True
                    )


# -- the report ------------------------------------------------------------------------------------------------------


def normalised(message: str) -> str:
    """A message with its numbers as N and long words cut, so that like ones are counted together."""
    short = re.sub(r"\S{80,}", lambda found: f"{found[0][:40]}...", message.strip())
    return re.sub(r"\d[\d,.]*(e[+-]?\d+)?", "N", short)[:400]


def report(cases: list[Case], confirmed: list[dict[str, Any]], seed: int, seconds: float, jobs: int) -> dict[str, Any]:
    """Everything that a reader needs to trust the figures or to repeat them."""
    counts = collections.Counter(case.verdict for case in cases)
    messages = collections.Counter(normalised(case.message) for case in cases if case.verdict in ("refused", "ended"))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    failures = [case for case in cases if case.verdict not in GOOD]
    names = ("tst-lightning", "torch", "lightning", "litdata", "transformers", "jsonargparse", "omegaconf", "PyYAML")
    return {
        "commit": commit,
        "machine": f"{os.cpu_count()} CPU cores, {jobs} cases at a time, one thread each, {platform.machine()}",
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "seed": seed,
        "seconds": round(seconds),
        "cases": len(cases),
        "counts": {
            "started": counts["started"],
            "ended in one line after a step": counts["ended"],
            "refused in one line": counts["refused"],
            "tracebacks": counts["traceback"],
            "hangs": counts["hang"],
            "other failures": len(failures) - counts["traceback"] - counts["hang"],
        },
        "confirmed by the real command": confirmed,
        "failures": [{key: value for key, value in asdict(case).items() if key != "content"} for case in failures],
        "messages": dict(messages.most_common()),
    }


def confirm(cases: list[Case], count: int, folder: Path, jobs: int) -> list[dict[str, Any]]:
    """Repeats cases by the real command: half of them started ones, half refused ones, evenly spread."""
    chosen: list[Case] = []
    for group in (["started"], ["refused", "ended"]):
        found = [case for case in cases if case.verdict in group]
        chosen += found[:: max(1, len(found) // max(1, count // 2))][: count // 2]
    again = [Case(case.number, case.base, case.mutations, content=case.content) for case in chosen]
    run_all(again, folder, jobs, _run_real)
    return [
        {
            "number": here.number,
            "forked": here.verdict,
            "real": there.verdict,
            "same": here.verdict == there.verdict and (here.verdict == "started" or here.message == there.message),
        }
        for here, there in zip(chosen, again, strict=True)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--cases", type=int, default=1000, help="number of mutated configurations")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--confirm", type=int, default=20, help="cases to be repeated by the real command")
    parser.add_argument("--case", type=int, help="run this case alone; prints its mutations, its YAML and what it said")
    options = parser.parse_args()
    os.environ |= ONE_THREAD  # before the libraries are imported

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz_config_") as name:
        folder = Path(name)
        shards = prepare_shards(folder)
        bases: dict[str, Any] = {}
        for path in sorted((ROOT / "configs" / "quickstart").glob("*.yaml")):
            bases[path.stem] = shrunk(path, shards)
            bases[f"{path.stem}, as saved by a run"] = resolved(bases[path.stem], folder)
        import_everything()
        threads = len(os.listdir("/proc/self/task"))
        assert threads == 1, f"{threads} threads before the first fork"

        cases = []
        for number in range(options.cases) if options.case is None else [options.case]:
            rng = random.Random(f"{options.seed}:{number}")
            base = rng.choice(list(bases))
            content, mutations = mutate(rng, bases[base])
            cases.append(Case(number, base, mutations, content=content))
        run_all(cases, folder, options.jobs, _run_forked)
        if options.case is not None:
            case = cases[0]
            print(
                case.content.decode(errors="replace"), case.base, case.mutations, case.verdict, case.message, sep="\n"
            )
            return int(case.verdict not in GOOD)
        confirmed = confirm(cases, options.confirm, folder, options.jobs)
        result = report(cases, confirmed, options.seed, time.monotonic() - began, options.jobs)
    text = json.dumps(result, indent=1).replace(str(folder), "TMP").replace(f"{ROOT}/", "")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    differ = [each for each in confirmed if not each["same"]]
    print(json.dumps(result["counts"]), f"{len(confirmed) - len(differ)} of {len(confirmed)} confirmed", differ or "")
    return int(bool(result["failures"] or differ))


if __name__ == "__main__":
    sys.exit(main())

"""The real command in processes of its own, each forked from one that has its libraries imported already.

Python's fork server is a fresh interpreter with nothing of the tests in it. It imports what ``tst fit`` does, once for each
of the tests' own processes, and runs no thread. What is forked from it is a process like any other, with its arguments,
environment, process group, signals, outputs and exit code; only importing, most of what a start takes, is done. It is no
start in these: sys.flags, the order of sets and the imported modules are the server's, and it ends as multiprocessing's
processes do, without the interpreter being taken down. Tests of these start ``python -m tst_lightning`` itself.
"""

import atexit
import gc
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

ROOT = Path(__file__).parent.parent
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tst_lightning.commands.fit", "tst_lightning.shards.build"])


class Command:
    """``tst`` with some words, started in a process group of its own; its methods are those of ``subprocess.Popen``.

    Args:
        words: after ``tst``.
        ranks: the processes of the run that are forked here, the first of them being the others' parent, with the
            environment by which a cluster's launcher tells them who they are. With 1, Lightning starts the others, for
            real.
        environment: of the process; that of the tests unless given.
    """

    def __init__(self, *words: str, ranks: int = 1, environment: Mapping[str, str] | None = None) -> None:
        self._words = words
        environment = dict(os.environ if environment is None else environment)
        if ranks > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            environment |= {"WORLD_SIZE": str(ranks), "NODE_RANK": "0", "LOCAL_RANK": "0"}
        readers, writers = zip(*(multiprocessing.Pipe(duplex=False) for _ in ("stdout", "stderr")), strict=True)
        self._process = _SERVER.Process(target=_become, args=(words, ranks, environment, writers))
        self._process.start()
        for writer in writers:
            writer.close()
        self._outputs = [_Output(reader) for reader in readers]
        atexit.register(self._kill)  # before multiprocessing waits for it

    @property
    def pid(self) -> int:
        """Of the first process, and of the process group."""
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """Exit code of the first process, -n if signal n has ended it, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As :attr:`returncode`."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal to the first process."""
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Waits for the end of all processes that write to its outputs; what was written to stdout and stderr.

        Raises:
            TimeoutExpired: after so many seconds.
        """
        for output in self._outputs:
            output.join(timeout)
            if output.is_alive():
                raise TimeoutExpired(self._words, timeout)
        self._process.join(timeout)
        atexit.unregister(self._kill)
        out, err = (output.text for output in self._outputs)
        return out, err

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def run(*words: str, ranks: int = 1, environment: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Starts a :class:`Command` and waits for its end."""
    command = Command(*words, ranks=ranks, environment=environment)
    out, err = command.communicate()
    assert command.returncode is not None
    return CompletedProcess(words, command.returncode, out, err)


def free_port() -> int:
    """A port of this machine that no one listens at, nor will before it is used: the system hands out higher ones, and each
    of the tests' own processes takes its from a range of its own.
    """
    first = 20_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12)
    for port in random.Random().sample(range(first, first + 1_000), 1_000):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


class _Output(threading.Thread):
    """Reads a pipe until its last writer has closed it."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self.text = ""
        self.start()

    def run(self) -> None:
        with open(self._pipe.fileno(), closefd=False) as file:
            self.text = file.read()


def _become(words: tuple[str, ...], ranks: int, environment: dict[str, str], outputs: tuple[Connection, ...]) -> None:
    """Makes the forked process what ``python -m tst_lightning WORDS`` is."""
    multiprocessing.set_start_method(None, force=True)  # the default again, for the processes that read data
    os.setpgid(0, 0)
    for descriptor, pipe in enumerate(outputs, start=1):
        os.dup2(pipe.fileno(), descriptor)
        pipe.close()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["tst", *words]
    gc.freeze()
    for rank in range(1, ranks):
        if os.fork() == 0:
            os.environ["LOCAL_RANK"] = str(rank)
            break
    runpy.run_module("tst_lightning", run_name="__main__", alter_sys=True)

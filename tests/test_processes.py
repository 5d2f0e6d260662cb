"""A forked process is what a start would be, and the server that it is forked from runs nothing that a fork would break."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import Command, run


@pytest.mark.parametrize("words", [["prepare", "--help"], ["prepare", "nothing", "--out", "out"]])
def test_says_and_returns_what_a_start_does(words: list[str]) -> None:
    command = [sys.executable, "-m", "tst_lightning", *words]
    started = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    forked = run(*words)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)
    assert forked.stdout or forked.stderr


def test_the_server_has_one_thread() -> None:
    command = Command("fit", "--help")
    parent = re.findall(r"PPid:\s+(\d+)", Path(f"/proc/{command.pid}/status").read_text())[0]
    assert len(list(Path(f"/proc/{parent}/task").iterdir())) == 1
    out, _ = command.communicate()
    assert command.returncode == 0 and out.startswith("usage: tst fit ")

"""What a step on the CPU frees stays with the process, and lies in huge pages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback

from tests.conftest import tiny_config
from tst_lightning.commands import host_memory

# A block of 64 MiB, twice: the second time, its pages are there. Then many, freed, before another run begins.
SCRIPT = """
import resource, sys
from tst_lightning.__main__ import main

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

words, other = sys.argv[1:-1], sys.argv[-1]
assert main(words) == 0
del bytearray(64 << 20)[:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
del bytearray(64 << 20)[:]
print("faults", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

blocks = [bytes([i]) * (1 << 20) for i in range(256)]
del blocks
before = resident()
assert main([*words, "--run_dir", other]) == 0
print("given back", before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc")
def test_a_run_keeps_large_blocks_but_for_holes(tmp_path: Path, shards: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "run", shards, trainer__max_steps=4), sort_keys=False))
    words = [sys.executable, "-c", SCRIPT, "fit", "--config", str(path), str(tmp_path / "other")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = dict(re.findall(r"^(faults|given back) (-?\d+)$", done.stdout, re.MULTILINE))
    assert int(said["faults"]) < 1000, done.stdout  # 16,384 pages of 4 KiB, were it mapped anew
    assert int(said["given back"]) > 200, done.stdout


BEGUN: list[int] = []


class Steps(Callback):
    """Notes the step of each micro-batch."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        BEGUN.append(trainer.global_step)


def test_holes_are_given_back_now_and_then(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(host_memory, "_STEPS_BETWEEN", 5)
    monkeypatch.setattr(host_memory, "_of_glibc", lambda function: lambda pad: given_back.append(BEGUN[-1]))
    spec = {"class_path": f"{__name__}.Steps"}
    more = {"trainer__accumulate_grad_batches": 2, "trainer__val_check_interval": 10}
    code, said = fit("run", f"--trainer.callbacks+={json.dumps(spec)}", **more)
    assert code == 0, said
    assert given_back == [2, 7, 12, 17]


# After any command, a tensor of 64 MiB; what the kernel tells of each mapping.
MAPPINGS = """
from tst_lightning.__main__ import main
try: main(["compare", "--help"])
except SystemExit: pass
import torch
tensor = torch.ones(16 << 20)
print(open("/proc/self/smaps").read())
"""


@pytest.mark.skipif(not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="no transparent huge pages")
@pytest.mark.parametrize(("environment", "least", "most"), [({}, 63, 65), ({"THP_MEM_ALLOC_ENABLE": "0"}, 0, 0)])
def test_large_tensors_ask_for_huge_pages(environment: dict[str, str], least: int, most: int) -> None:
    inherited = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    words = [sys.executable, "-c", MAPPINGS]
    said = subprocess.run(words, capture_output=True, text=True, env=inherited | environment, check=True).stdout
    sizes = re.findall(r"^Size: +(\d+) kB$", said, re.MULTILINE)
    flags = re.findall(r"^VmFlags: (.*)$", said, re.MULTILINE)
    asked = sum(int(size) for size, flag in zip(sizes, flags, strict=True) if "hg" in flag.split())
    assert least <= asked >> 10 <= most

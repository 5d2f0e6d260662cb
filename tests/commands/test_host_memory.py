"""What a step on the CPU frees stays with the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import tiny_config

# A block of 64 MiB, twice: the second time, its pages are there.
SCRIPT = """
import resource, sys
from tst_lightning.__main__ import main
assert main(sys.argv[1:]) == 0
del bytearray(64 << 20)[:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
del bytearray(64 << 20)[:]
print("faults", resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="needs glibc")
def test_a_run_keeps_large_blocks(tmp_path: Path, shards: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "run", shards, trainer__max_steps=4), sort_keys=False))
    words = [sys.executable, "-c", SCRIPT, "fit", "--config", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("faults ")[1]) < 1000, done.stdout  # 16,384 pages of 4 KiB, were it mapped anew

"""Every `tst` command that the README shows, run in order, with smaller numbers behind it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import zstandard

from tests.conftest import ROOT
from tst_lightning.__main__ import COMMANDS, main

README = (ROOT / "README.md").read_text()
SMALL = {
    "fit": "--trainer.max_steps 8 --trainer.val_check_interval 4 --trainer.limit_val_batches 1 --data.seq_len 16"
    " --data.batch_size 2 --model.lr_schedule.warmup_steps 1",
    "validate": "--trainer.limit_val_batches 1",
    "sweep": "--dry_run",
}


def shown_commands() -> list[str]:
    return re.findall(r"^\$ \.venv/bin/tst (.*)$", README, re.MULTILINE)


def test_every_extra_is_there() -> None:
    there = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    code = "".join(path.read_text() for path in (ROOT / "tst_lightning").rglob("*.py"))
    named = set(re.findall(r"tst-lightning\[(\w+)\]", README + code))
    assert named and named <= set(there)


def test_every_command_runs(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(shards, tmp_path / "data" / "quickstart")
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "more").mkdir()
    texts = sorted(Path(sysconfig.get_path("stdlib")).glob("a*.py"))[:8]
    for text in texts:
        (tmp_path / "my_texts" / f"{text.stem}.txt").write_text(text.read_text())
    lines = "".join(json.dumps({"text": (ROOT / name).read_text()}) + "\n" for name in ("README.md", "LICENSE"))
    (tmp_path / "more" / "a.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    assert main(shlex.split("fit --config configs/quickstart/tst.yaml " + SMALL["fit"])) == 0  # make quickstart's

    commands = shown_commands()
    assert {shlex.split(command)[0] for command in commands} == {
        "prepare",
        "plan",
        "fit",
        "sweep",
        "compare",
        "validate",
        "export",
        "generate",
    }
    for command in commands:
        words = shlex.split(command)
        if words[0] == "prepare" and "--verify" not in words:
            words += ["--val_share", "0.3"]
        words += shlex.split(SMALL.get(words[0], ""))
        if "--print_config" in words:
            with pytest.raises(SystemExit, match="0"):
                main(words)
        else:
            assert main(words) == 0, command
    assert (tmp_path / "runs" / "mine" / "report" / "report.html").exists()


def test_every_make_target_that_is_named_exists() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in set(re.findall(r"`?make (\w+)`?", README)) - {"and"}:
        assert f"make {target}" in listed, target


def test_every_link_into_the_tree_leads_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_annotated_tree_is_the_tree() -> None:
    shown = set(re.findall(r"^  (\w+/|\w+\.py) ", README, re.MULTILINE))
    kept = {"__init__.py", "__main__.py", "errors.py"}
    there = (
        {f"{p.name}/" if p.is_dir() else p.name for p in (ROOT / "tst_lightning").iterdir()} - kept - {"__pycache__/"}
    )
    assert shown == there


def test_module_and_console_script_are_one(capfd: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for command in ([sys.executable, "-m", "tst_lightning"], [str(Path(sys.executable).parent / "tst")]):
        outputs.append(subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1] and all(name in outputs[0] for name in COMMANDS)

"""Files from others, given to the real commands: none of them gets code run, and each ends in one line.

Every payload would create one and the same file, the canary.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.compare.run_folders import RECORD, write_run
from tests.conftest import tiny_config
from tst_lightning.__main__ import main


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


class Payload:
    """What pickle runs when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def refused(capfd: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    """Runs a command that must fail with one line, which is returned."""
    capfd.readouterr()
    assert main(list(arguments)) == code, capfd.readouterr()
    error = capfd.readouterr().err
    assert "Traceback" not in error
    *_, last = error.strip().splitlines()
    assert last.startswith("error: ")
    return last


def write_config(tmp_path: Path, shards: Path, **changes: Any) -> str:
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "run", shards, **changes), sort_keys=False))
    return str(path)


def test_the_payload_works(canary: Path) -> None:
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.exists()


@pytest.mark.parametrize("form", ["torch", "torch, beside a whole state", "pickle"])
def test_a_checkpoint_of_pickled_code(fit: Callable[..., Any], tmp_path, capfd, canary, shards, form):
    code, out = fit("run", trainer__max_steps=5)
    assert code == 0, out
    checkpoint, evil = tmp_path / "run/checkpoints/last.ckpt", tmp_path / "evil.ckpt"
    if form == "pickle":
        evil.write_bytes(pickle.dumps(Payload(canary)))
    else:
        state = torch.load(checkpoint, weights_only=True) if "whole" in form else {}
        torch.save(state | {"callbacks": Payload(canary)}, evil)
    config = ["--config", str(tmp_path / "run/config.yaml")]
    refusals = [
        refused(capfd, "fit", *config, "--run_dir", str(tmp_path / "other"), "--ckpt_path", str(evil), code=1),
        refused(capfd, "validate", *config, "--ckpt_path", str(evil), code=1),
        refused(capfd, "test", *config, "--ckpt_path", str(evil), code=1),
    ]
    shutil.copy(evil, checkpoint)
    for other in checkpoint.parent.glob("*.ckpt"):
        shutil.copy(evil, other)
    refusals.append(refused(capfd, "validate", *config, code=1))
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(record | {"status": "running"}))
    refusals.append(refused(capfd, "fit", *config, "--ckpt_path", "last", code=1))
    for refusal in refusals:
        assert "checkpoint" in refusal, refusal
    assert not canary.exists()


TAGS = [
    "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/object/new:os.system ['touch {canary}']",
    "!!python/object/apply:subprocess.Popen [[touch, {canary}]]",
    "!!python/object:subprocess.Popen {{args: [touch, {canary}]}}",
    "!!python/object/new:type {{args: [z, !!python/tuple [], {{extend: !!python/name:exec }}], listitems: 'x'}}",
    "!!python/name:os.system",
    "!!python/module:os",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_with_python_tags(fit, shards, tmp_path, capfd, canary, tag):
    tagged = tag.format(canary=canary)
    config = Path(write_config(tmp_path, shards))
    text = config.read_text()
    for content in (f"{text}extra: {tagged}\n", text.replace("max_steps: 20", f"max_steps: {tagged}"), tagged):
        config.write_text(content)
        assert "tag" in refused(capfd, "fit", "--config", str(config), code=2) or content == tagged
    refused(capfd, "fit", "--config", write_config(tmp_path, shards), "--model.optimizer", tagged, code=2)

    # As the configuration that a run was left with, which a resumed one is compared with.
    config.write_text(text)
    (tmp_path / "run").mkdir()
    record = {"status": "stopped", "step": 3, "max_steps": 20}
    record |= dict.fromkeys(("train_sha256", "val_sha256", "tokenizer_sha256"), "0" * 64)
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    (tmp_path / "run/config.yaml").write_text(f"{text}extra: {tagged}\n")
    refused(capfd, "fit", "--config", str(config), "--ckpt_path", "last", code=2)
    refused(capfd, "validate", "--config", str(tmp_path / "run/config.yaml"), code=2)
    assert not canary.exists()


SHELL = {
    "popen": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "CANARY"]}},
    "system": {"class_path": "os.system", "init_args": {"command": "touch CANARY"}},
    "getoutput": {"class_path": "subprocess.getoutput", "init_args": {"cmd": "touch CANARY"}},
    "run_path": {"class_path": "runpy.run_path", "init_args": {"path_name": "PAYLOAD.py"}},
    "exec": {"class_path": "builtins.exec", "init_args": {"source": "open('CANARY', 'w')"}},
    "a class that makes a file": {"class_path": "logging.FileHandler", "init_args": {"filename": "CANARY"}},
    "by another name": {
        "class_path": "torch.utils.cpp_extension.subprocess.getoutput",
        "init_args": {"cmd": "touch CANARY"},
    },
    "as text": '{"class_path": "os.system", "init_args": {"command": "touch CANARY"}}',
    "as a file": "PAYLOAD.yaml",
    "a name": "os.system",
    "a call": "__import__('os').system('touch CANARY')",
}
PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "callback": lambda value: {"callbacks__evil": value},
    "logger": lambda value: {"loggers__evil": value},
    "optimizer": lambda value: {"model__optimizer": value},
    "model": lambda value: {"model__config": value},
    "phase": lambda value: {"model__phases__superposition": value},
    "strategy": lambda value: {"trainer__strategy": value},
    # Where any callable is expected, and where anything is.
    "hook": lambda value: {
        "callbacks__evil": {
            "class_path": "lightning.pytorch.callbacks.LambdaCallback",
            "init_args": {"on_train_start": value},
        }
    },
    "anything": lambda value: {
        "loggers__evil": {
            "class_path": "lightning.pytorch.loggers.WandbLogger",
            "init_args": {"experiment": value},
        }
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_what_a_configuration_may_not_call(shards, tmp_path, capfd, canary, place):
    (tmp_path / "PAYLOAD.py").write_text(f"open({str(canary)!r}, 'w')")
    for name, payload in SHELL.items():
        text = json.dumps(payload).replace("CANARY", str(canary)).replace("PAYLOAD", str(tmp_path / "PAYLOAD"))
        value = json.loads(text)
        system = {"class_path": "os.system", "init_args": {"command": f"touch {canary}"}}
        (tmp_path / "PAYLOAD.yaml").write_text(yaml.safe_dump(system))
        config = write_config(tmp_path, shards, **PLACES[place](value))
        refused(capfd, "fit", "--config", config, code=2)
        assert not canary.exists(), name
        assert not (tmp_path / "run/run.json").exists(), name


@pytest.mark.parametrize(
    "text",
    [
        "${eval:__import__('os').system('touch CANARY')}",
        "${oc.decode:'!!python/object/apply:os.system [touch CANARY]'}",
        "${oc.select:${oc.env:HOME}}",
        "${run:touch CANARY}",
        "${oc.env:NOT_SET_ANYWHERE}",
        "${data.shards}",
        "${oc.create:{a: ${data}}}",
        "$(touch CANARY)",
        "`touch CANARY`",
    ],
)
def test_interpolations_that_would_compute(shards, tmp_path, capfd, canary, text):
    config = write_config(tmp_path, shards, data__shards=text.replace("CANARY", str(canary)))
    refused(capfd, "fit", "--config", config, code=2)
    assert not canary.exists()


def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def test_an_index_of_pickled_items(shards, tmp_path, capfd, canary):
    folder = copied(shards, tmp_path)
    path = folder / "train/index.json"
    index = json.loads(path.read_text())
    index["config"] |= {"data_format": ["pickle"], "item_loader": "PyTreeLoader"}
    path.write_text(json.dumps(index))
    data = pickle.dumps(Payload(canary))
    with open(folder / "train/chunk-0-0.bin", "r+b") as file:
        file.seek(12)
        file.write(data)
    error = refused(capfd, "fit", "--config", write_config(tmp_path, folder), code=2)
    assert f"'{path}' names data_format \"['pickle']\", shards of `tst prepare` have ['no_header_tensor:20']" in error
    capfd.readouterr()
    assert main(["prepare", "--verify", str(folder)]) == 1
    assert "names data_format" in capfd.readouterr().out
    assert not canary.exists()


def test_a_manifest_that_leads_elsewhere(shards, tmp_path, capfd):
    folder = copied(shards, tmp_path)
    secret = tmp_path / "secret.bin"
    shutil.copy(folder / "train/chunk-0-0.bin", secret)
    content = json.loads((folder / "manifest.json").read_text())
    del content["manifest_sha256"]
    for name in ("../../secret.bin", str(secret), "../val/chunk-0-0.bin", "..", "chunk-0-0.bin\0"):
        content["train"]["chunks"][0]["filename"] = name
        (folder / "manifest.json").write_text(json.dumps(content))
        for arguments in (["fit", "--config", write_config(tmp_path, folder)], ["prepare", "--verify", str(folder)]):
            error = refused(capfd, *arguments, code=2)
            assert f"can't be understood (train.chunks[0].filename is {ascii(name)[:60]}, not a name" in error


def test_a_tokenizer_that_brings_code(tmp_path, capfd, canary):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["code.Evil", "code.Evil"]}})
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "code.Evil"}}))
    (tmp_path / "a.txt").write_text("text")
    command = [sys.executable, "-m", "tst_lightning", "prepare", str(tmp_path / "a.txt"), "--tokenizer", str(folder)]
    command += ["--out", str(tmp_path / "out")]
    # Whoever asks "do you trust this?" gets a yes.
    result = subprocess.run(command, input="y\n" * 20, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith(f"error: can't load tokenizer '{folder}': ")
    assert "[y/N]" not in result.stdout + result.stderr
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs


def marked(value: Any) -> Any:
    """A record with markup in every text of it, but for those that must agree with the other run's."""
    if isinstance(value, dict):
        return {f"{key}{MARKUP}": marked(inner) for key, inner in value.items()}
    return value + MARKUP if isinstance(value, str) else value


def test_a_run_record_with_markup(tmp_path, capfd):
    phases = [{**RECORD["phases"][0], "name": MARKUP, "class": MARKUP}]
    more = {"device": MARKUP, "optimizer": MARKUP, f"new{MARKUP}": MARKUP, "versions": marked({"torch": "2"})}
    runs = [
        write_run(tmp_path / "plain"),
        write_run(tmp_path / "<b>evil<", name=MARKUP, status=MARKUP, phases=phases, **more),
    ]
    assert main(["compare", *runs, "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report/report.html").read_text()
    assert "&lt;script&gt;" in page
    found = _Tags()
    found.feed(page)
    assert not found.tags & {"script", "b", "iframe", "object"}
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert all(
        value.startswith("data:image/png") for name, value in found.attributes if name in ("src", "srcset") and value
    )


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"format": 1, "name": ' + "[" * 900 + "]" * 900 + "}", "\0", "1e999"]
)
def test_a_run_record_that_is_none(tmp_path, capfd, content):
    runs = [write_run(tmp_path / "plain"), write_run(tmp_path / "evil")]
    (tmp_path / "evil/run.json").write_text(content)
    refused(capfd, "compare", *runs, "--out", str(tmp_path / "report"), code=1)

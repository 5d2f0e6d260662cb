"""Real text, a real tokenizer and real shards, made once per session; and the real command, run in this process."""

import gc
import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

from tests.processes import ROOT
from tst_lightning.__main__ import main
from tst_lightning.commands import host_memory

SEQ_LEN = 16

needs_compiler = pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler"
)

# How long an example takes says what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure() -> None:
    gc.disable()  # while everything is imported, which then is left out of it, as by `tst` itself: 3 s


def pytest_collection_finish() -> None:
    # Else tests of what this process holds at most would find blocks that others have freed.
    host_memory.keep_freed_memory = lambda: None
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a dozen standard-library modules: about 300k tokens under a 320-entry vocabulary."""
    folder = tmp_path_factory.mktemp("shards") / "small"
    stdlib = Path(sysconfig.get_path("stdlib"))
    names = [
        "argparse",
        "ast",
        "bdb",
        "calendar",
        "cgi",
        "codecs",
        "copy",
        "csv",
        "dis",
        "enum",
        "glob",
        "heapq",
        "json",
    ]
    sources = [str(path) for name in names if (path := stdlib / f"{name}.py").exists()]
    assert main(["prepare", *sources, "--out", str(folder), "--vocab_size", "320", "--val_share", "0.2"]) == 0
    return folder


def prepare_licence(folder: Path, *options: str) -> Path:
    """Shards of this repository's licence: few enough blocks that two processes read them several times."""
    paragraphs = (ROOT / "LICENSE").read_text().split("\n\n")
    (folder / "licence.jsonl").write_text("".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs))
    words = ["--out", str(folder / "shards"), "--vocab_size", "300", "--val_share", "0.3", *options]
    assert main(["prepare", str(folder / "licence.jsonl"), *words]) == 0
    return folder / "shards"


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with few blocks."""
    return prepare_licence(tmp_path_factory.mktemp("few"))


def tiny_config(run_dir: Path, shards: Path, **changes: Any) -> dict[str, Any]:
    """The quickstart's TST configuration, shrunk: 20 steps of 4 x 16 positions, a model of 2 layers.

    Args:
        run_dir: folder of the run.
        shards: folder of the shards.
        changes: dotted key (with __ for .) to value.
    """
    config = yaml.safe_load((ROOT / "configs" / "quickstart" / "tst.yaml").read_text())
    config["run_dir"] = str(run_dir)
    config["model"]["config"]["init_args"] |= {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": SEQ_LEN,
    }
    config["model"]["phases"]["superposition"]["init_args"] |= {"bag_size": 4, "share": 0.5}
    # All of these are its own: the golden curves must not move when the quickstart is tuned.
    config["model"]["optimizer"] = {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": 3.0e-3, "betas": [0.9, 0.95], "weight_decay": 0.1, "fused": True},
    }
    config["model"]["lr_schedule"] = {"warmup_steps": 2, "decay_share": 0.2}
    config["data"] |= {"shards": str(shards), "seq_len": SEQ_LEN, "batch_size": 4, "block_rows": 4, "pool_blocks": 8}
    config["trainer"] |= {
        "max_steps": 20,
        "val_check_interval": 5,
        "limit_val_batches": 2,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The finished run of the tiny configuration as it stands, for other runs to be held against; not to be written to."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tiny_config(folder, shards), sort_keys=False))
    assert main(["fit", "--config", str(path)]) == 0
    return folder


@pytest.fixture
def fit(tmp_path: Path, shards: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs ``tst fit`` on a tiny configuration; gives the exit code and what it printed."""

    def run(name: str = "run", *arguments: str, **changes: Any) -> tuple[int, str]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tiny_config(tmp_path / name, shards, **changes), sort_keys=False))
        capfd.readouterr()
        code = main(["fit", "--config", str(path), *arguments])
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return run

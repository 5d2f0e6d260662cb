"""Bad input, given to the real command: one line that says what was wrong, the value and what to do; no traceback."""

import functools
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from tests.conftest import ROOT, tiny_config
from tst_lightning.__main__ import main

Config = dict[str, Any]
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, shards: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that is to fail; checks exit code and form of the message, and gives its one line."""

    def run(
        *arguments: str,
        code: int = 2,
        command: str = "fit",
        edit: Callable[[Config], Any] | None = None,
        text: str | None = None,
        **changes: Any,
    ) -> str:
        config = tiny_config(tmp_path / "run", shards, **changes)
        if edit:
            edit(config)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False) if text is None else text)
        capfd.readouterr()
        found = main([command, "--config", str(path), *arguments])
        said = capfd.readouterr().err
        assert found == code, said
        assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n"), said
        assert "Traceback" not in said
        return said

    return run


def put(path: str, value: Any) -> Callable[[Config], None]:
    """An edit of the configuration: dotted path, numbers for places in a list; a value of ... removes the key."""

    def edit(config: Config) -> None:
        *parents, last = [int(part) if part.lstrip("-").isdigit() else part for part in path.split(".")]
        node: Any = functools.reduce(lambda inner, part: inner[part], parents, config)
        if value is ...:
            del node[last]
        else:
            node[last] = value

    return edit


MODEL = "model.config.init_args"
BAGS = "model.phases.superposition.init_args"
LAW = {"constant": 0.1, "factor": 1.2, "exponent": -0.9}
ADAM = "model.optimizer.init_args"
CHECKPOINT = "callbacks.best"
HELP = "see `tst fit --help`"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        # unknown keys
        ("modle", 1, ["Option 'modle' is not accepted", HELP]),
        (f"{MODEL}.hiden_size", 3, ["model.config: transformers.LlamaConfig: Option 'hiden_size' is not", HELP]),
        (f"{BAGS}.bagsize", 3, ["model.phases.superposition: tst_lightning.phases.Sup", "Option 'bagsize' is not"]),
        ("data.sharts", "x", ["Option 'data.sharts' is not accepted; is it 'data.shards'?"]),
        ("trainer.max_step", 3, ["Option 'trainer.max_step' is not accepted"]),
        (f"{ADAM}.learning_rate", 1, ["model.optimizer: Option 'learning_rate' is not accepted"]),
        ("model.lr_schedule.warmup", 1, ["model.lr_schedule", "Option 'warmup' is not accepted"]),
        (f"{CHECKPOINT}.init_args.save_lst", 1, ["callbacks", "ModelCheckpoint", "'save_lst' is not"]),
        # wrong types
        ("data.seq_len", "abc", ["data.seq_len: expected int, got abc"]),
        ("data.seq_len", None, ["required: data.seq_len"]),
        ("data.shards", ..., ["required: data.shards"]),
        (f"{MODEL}.hidden_size", "abc", ["model.config", "hidden_size: expected int, got abc"]),
        (f"{MODEL}.hidden_size", None, ["hidden_size: expected int, got null"]),
        (f"{BAGS}.bag_size", "abc", ["model.phases", "bag_size: expected int, got abc"]),
        (f"{BAGS}.bag_size", 2.5, ["bag_size: expected int, got 2.5"]),
        (f"{BAGS}.share", "abc", ["share: expected float, got abc"]),
        (f"{ADAM}.lr", "abc", ["model.optimizer: lr: expected float"]),
        ("trainer.max_steps", "abc", ["trainer.max_steps: expected int, got abc"]),
        ("seed_everything", "abc", ["seed_everything: expected bool or expected int, got abc"]),
        ("callbacks.non_finite.init_args", {"every_n_steps": "x"}, ["NonFiniteGuard: every_n_steps: expected int"]),
        # unknown classes
        ("model.config.class_path", "transformers.LamaConfig", ["model.config", "LamaConfig"]),
        ("model.config.class_path", "nowhere.LlamaConfig", ["No module named 'nowhere'"]),
        ("model.config", {"class_path": "torch.nn.Linear"}, ["torch.nn.Linear", "subclass of PreTrainedConfig"]),
        ("model.phases.recovery.class_path", "tst_lightning.phases.Recovery", ["model.phases", "'Recovery'"]),
        ("model.optimizer.class_path", "torch.optim.AdmW", ["model.optimizer", "'AdmW'"]),
        ("callbacks.flops_meter.class_path", "tst_lightning.callbacks.Flops", ["callbacks", "'Flops'"]),
        # values that the classes refuse
        (f"{MODEL}.num_attention_heads", 3, ["hidden size (32) is not a multiple", "(3)"]),
        (f"{ADAM}.lr", -1.0, ["model.optimizer", "Invalid learning rate: -1.0"]),
        ("trainer.accelerator", "abacus", ["accelerator='abacus'", "cpu"]),
        ("trainer.gradient_clip_algorithm", "value", ["gradient_clip_algorithm is 'value'; only 'norm'"]),
        ("callbacks.flops_meter", ..., ["RunRecord needs a FlopsMeter", "add one"]),
        ("run_dir", ..., ["run_dir is not given", "--run_dir"]),
        ("trainer.default_root_dir", "${run_dirr}", ["run_dirr", "not found", "trainer.default_root_dir"]),
        (f"{ADAM}.betas", [2.0, 0.9], ["model.optimizer refuses its values", "Invalid beta parameter at index 0: 2.0"]),
        ("model.optimizer", {"class_path": "torch.optim.Muon"}, ["model.optimizer refuses its values: Muon only"]),
        ("model.optimizer", {"class_path": "torch.optim.SparseAdam"}, ["SparseAdam fails with its", "dense gradients"]),
        (f"{MODEL}.initializer_range", "x", ["model.config", "initializer_range: expected float, got x"]),
        ("loggers.tensorboard.init_args.flush_secs", 1e39, ["TensorBoardLogger fails with its values: OverflowError"]),
        ("loggers.tensorboard.init_args.flush_secs", "~120", ["TensorBoardLogger fails with its values: TypeError"]),
        ("trainer.strategy", "best", ["Trainer refuses its values", "strategy='best'"]),
        ("model.config", {"class_path": "transformers.BertConfig"}, ["BertLMHeadModel has a bias on its LM head"]),
        ("model.config", {"class_path": "transformers.CLIPConfig"}, ["no causal language model", "CLIPConfig"]),
        (
            "model.config",
            {"class_path": "transformers.JetMoeConfig", "init_args": {"vocab_size": 320}},
            ["JetMoeForCausalLM balances its experts", "(aux_loss_coef=0.01)", "set aux_loss_coef: 0"],
        ),
        (
            "callbacks.loads",
            {"class_path": "tst_lightning.callbacks.ExpertLoad"},
            ["LlamaForCausalLM has no", "remove it"],
        ),
        ("model.activation_checkpointing", "some", ["expected one of 'none', 'selective', 'full', got some"]),
        ("callbacks.flops_meter.init_args", {"attention": "half"}, ["expected one of 'full', 'causal', got half"]),
        (f"{MODEL}.attention_dropout", 3, ["LlamaConfig can't run with its values", "between 0 and 1, but got 3"]),
        ("run_dir", "~/x", ["run_dir is '~/x'", "write the folder out"]),
        # values of another shape
        ("trainer", [1, 2], ["trainer: expected a mapping of options, got [1, 2]"]),
        ("config", "x.yaml", ["has 'config' at its root", "remove it"]),
        ("callbacks", 3, ["callbacks: expected a mapping"]),
        ("callbacks.progress", {}, ["callbacks.progress has no class_path"]),
        ("callbacks.progress.class_path", None, ["callbacks.progress.class_path: expected a class", "got null"]),
        ("callbacks.progress.init_args", 7, ["callbacks.progress.init_args: expected a mapping", "got 7"]),
        ("callbacks.progress.refresh_rate", 7, ["callbacks.progress: not accepted beside class_path: refresh_rate"]),
        ("callbacks.class_path", "X", ["callbacks maps names to objects", "callbacks.NAME.class_path"]),
        (
            "loggers.csv.class_path",
            "lightning.pytorch.loggers.Logger",
            ["loggers.csv: ", "Logger is abstract; name one"],
        ),
        ("loggers.csv.class_path", "run", ["loggers.csv: expected a class such as package.Class, got run"]),
        ("data.block_rows", None, ["data.block_rows: expected int, got null"]),
        ("data.seq_len", "x" * 1000, ["data.seq_len: expected int (see"]),
        ("data.seq_len", "\u202e", ["data.seq_len: expected int, got \\u202e"]),
        ("trainer.default_root_dir", "${", ["a ${...} can't be resolved"]),
        ("trainer.default_root_dir", "a\0b", ["config.yaml', line", "a NUL character"]),
        ("model.lr_schedule.decay_share", 10**400, ["model.lr_schedule", "int too large to convert to float"]),
        # more than there is
        (f"{MODEL}.hidden_size", 10**9, ["8e+18 parameters", "this machine has", "model.config.init_args smaller"]),
        (f"{MODEL}.vocab_size", -7, ["model.config.init_args.vocab_size is -7", "at least 1"]),
        (f"{MODEL}.num_hidden_layers", 10**6, ["num_hidden_layers is 1000000", "at most 10,000"]),
        (f"{MODEL}.num_hidden_layers", 0, ["num_hidden_layers is 0", "at least 1"]),
        ("data.batch_size", 10**9, ["micro-batch of 1,000,000,000 rows of 16 positions", "lower data.batch_size"]),
        ("data.batch_size", 10**40, ["data.batch_size is 1000", "64 bits"]),
        ("data.num_workers", 10**6, ["data.num_workers is 1000000", "between 0 and"]),
        ("data.seed", -1, ["data.seed is -1", "between 0 and 4,294,967,295"]),
        ("seed_everything", -1, ["seed_everything is -1", "between 0 and 4,294,967,295"]),
        ("trainer.devices", 10**6, ["trainer.devices is 1000000", "processes make sense"]),
        ("trainer.num_nodes", 2, ["trainer.num_nodes is 2", "MASTER_ADDR"]),
        ("trainer.accumulate_grad_batches", 0, ["accumulate_grad_batches is 0", "at least 1"]),
        ("trainer.accumulate_grad_batches", 10**15, ["accumulate_grad_batches 1000000000000000", "at most"]),
        ("trainer.log_every_n_steps", 0, ["log_every_n_steps is 0", "at least 1"]),
        (f"{BAGS}.bag_size", 10**9, ["bag_size is 1000000000", "at most 65,536"]),
        # phases and steps
        (f"{BAGS}.share", ..., ["only one phase", "superposition and recovery name no share"]),
        ("model.phases.recovery.init_args.share", 0.6, ["sum to 1.1, not 1", "superposition 0.5, recovery 0.6"]),
        (f"{BAGS}.share", 1.5, ["share of the steps is 1.5", "between 0 and 1"]),
        (f"{BAGS}.share", -0.1, ["share of the steps is -0.1", "between 0 and 1"]),
        (f"{BAGS}.bag_size", 3, ["bag_size 3", "does not divide data.block_rows 4"]),
        (f"{BAGS}.bag_size", 0, ["bag_size is 0", "at least 1"]),
        (f"{BAGS}.weighting", "even", ["unknown bag weighting 'even'", "uniform, power_law", "{constant: C0,"]),
        (f"{BAGS}.weighting", None, ["unknown bag weighting 'None'"]),
        (f"{BAGS}.weighting", {"constant": 0, "factor": 1}, ["weighting", "arguments are required: exponent"]),
        (f"{BAGS}.weighting", LAW | {"constant": -2}, ["PowerLaw(constant=-2.0,", "finite weights of 0 and more"]),
        (f"{BAGS}.weighting", LAW | {"constant": "x"}, ["weighting", "constant: expected float, got x"]),
        (f"{BAGS}.weighting", LAW | {"exponent": 10**400}, ["int too large to convert to float"]),
        ("model.phases", {}, ["model.phases is empty"]),
        ("trainer.max_steps", ..., ["trainer.max_steps is -1", "--trainer.max_steps 1000"]),
        ("trainer.max_steps", None, ["trainer.max_steps: expected int, got null"]),
        ("model.lr_schedule.warmup_steps", 20, ["warmup_steps is 20", "only 20 steps"]),
        ("model.lr_schedule.decay_share", 2.0, ["decay_share is 2.0", "between 0 and 1"]),
        ("trainer.limit_train_batches", 3, ["limit_train_batches is 3", "leave limit_train_batches at null"]),
        ("trainer.max_epochs", 2, ["max_epochs is 2", "leave max_epochs at -1"]),
        ("trainer.val_check_interval", 0, ["val_check_interval is 0", "at least 1 batch"]),
        # data and model that don't fit together
        (f"{MODEL}.vocab_size", 300, ["320 ids", "vocabulary 300", "set model.config.init_args.vocab_size to 320"]),
        ("data.seq_len", 17, ["data.seq_len is 17", "16 positions", "max_position_embeddings"]),
        ("data.seq_len", 0, ["data.seq_len is 0", "at least 1"]),
        ("data.block_rows", 2**20, ["too small", "no shard file holds a block", "lower data.seq_len"]),
        ("data.shards", "/", ["'/' is not finished (no manifest.json)", "name that FOLDER here"]),
        ("data.shards", "/nowhere/shards", ["no shards at '/nowhere/shards'", "tst prepare"]),
    ],
)
def test_configuration(refused: Refused, tmp_path: Path, path: str, value: Any, says: list[str]) -> None:
    said = refused(edit=put(path, value))
    for part in says:
        assert part in said
    assert len(said) < 400
    assert not (tmp_path / "run").exists(), "a refused start leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trainer.max_step", "3"], "unrecognized arguments: --trainer.max_step 3; is it '--trainer.max_steps'?"),
        (["--model.config.init_args.hiden_size", "9"], "'hiden_size' is not accepted; is it 'hidden_size'? (see"),
        (["--model.config.init_args.data", "9"], "transformers.LlamaConfig: Option 'data' is not accepted (see"),
        (["--foo", "1", "--trainer.max_step", "3"], "--foo 1 --trainer.max_step 3; is it '--trainer.max_steps'?"),
        (["--data.seq_len", "abc"], "data.seq_len: expected int, got abc"),
        (["--config", "/nowhere/x.yaml"], "'/nowhere/x.yaml'"),
        (["--config", "/"], "Path is not a file: '/'"),
        (["--config"], "expected one argument"),
        (["--ckpt_path", "/nowhere/x.ckpt"], "there is no checkpoint at '/nowhere/x.ckpt'"),
    ],
)
def test_command_line(refused: Refused, arguments: list[str], says: str) -> None:
    assert says in refused(*arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\nb: {", "config.yaml', line 2, column 2: no YAML: expected ','"),
        ("a: 1\n\tb: 2", "line 2, column 1: no YAML: found character '\\t'"),
        ("- 1\n", "config.yaml' holds no mapping of options"),
        ("# nothing\n", "config.yaml' is empty"),
        ("\0", "config.yaml' can't be read as YAML: character U+0000 at 0"),
        ("data: {seed: 1, seed: 2}", "line 1, column 17: 'seed' is given a second time, first in line 1"),
        ("data: &a {seed: *a}", "line 1, column 7: this value holds itself"),
        ("data: {seed: *b}", "line 1, column 14: no YAML: found undefined alias 'b'"),
        ("data: " + "[" * 60 + "]" * 60, "line 1, column 57: nested too deeply"),
        ("data: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (
            "a: &a [1, 2]\n"
            + "".join(
                f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefghijklmnopq", "bcdefghijklmnopqr", strict=True)
            ),
            "more than 100,000 values",
        ),
        ("data: {? [1] : 2}", "line 1, column 10: a key must be text"),
        ("data:\n  seed: !!float abc", "line 2, column 9: 'abc' is no float"),
        ("data:\n  seed: 2026-99-99", "line 2, column 9: '2026-99-99' is no timestamp"),
        ("data: !mine {seed: 1}", "line 1, column 7: could not determine a constructor for the tag '!mine'"),
        ("data:\n  <<: 3", "line 2, column 7: expected a mapping"),
    ],
    ids=lambda value: value[:24].encode("unicode_escape").decode(),
)
def test_malformed_yaml(refused: Refused, text: str, says: str) -> None:
    assert says in refused(text=text)


@pytest.mark.parametrize(
    ("content", "says"), [(b"a: \xff", "byte 0xff at 3"), ("a: 1".encode("utf-16"), "byte 0xff at 0")]
)
def test_no_text(refused: Refused, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_bytes(content)
    assert f"'{path}' is no UTF-8 text ({says}); save it as UTF-8" in refused("--config", str(path))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Leaves half a GiB of address space to this process."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("the size of a process is read from Linux's /proc")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**29, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_model_that_does_not_fit_after_all(refused: Refused, tmp_path: Path, little_memory: None) -> None:
    """Its first matrix of 1 GiB is more than is left to the process; the machine, whose memory was asked, has more."""

    def edit(config: Config) -> None:
        config["model"]["config"]["init_args"] |= {"hidden_size": 16_384, "num_hidden_layers": 1}

    said = refused(edit=edit, code=1)
    assert "out of memory with 1,0" in said and "parameters, micro-batches of 4 rows of 16 positions" in said
    assert "can't allocate memory: you tried to allocate 1073741824 bytes" in said
    assert not (tmp_path / "run").exists()


def test_what_is_in_the_folder_already_stays(refused: Refused, tmp_path: Path) -> None:
    kept = tmp_path / "run" / "csv" / "version_0" / "metrics.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("step\n")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = {path: path.is_file() and path.read_bytes() for path in (tmp_path / "run").rglob("*")}
    assert "Muon only" in refused("--model.optimizer", "torch.optim.Muon")
    assert {path: path.is_file() and path.read_bytes() for path in (tmp_path / "run").rglob("*")} == before


def test_two_phases_that_both_fill_the_run_are_refused(refused: Refused) -> None:
    shares = {"superposition": 0.5, "recovery": 0.6}

    def edit(config: Config) -> None:
        for name, share in shares.items():
            config["model"]["phases"][name]["init_args"]["share"] = share

    assert "sum to 1.1, not 1" in refused(edit=edit)


# -- shards -------------------------------------------------------------------------------------------------------


def chunk(folder: Path) -> Path:
    return next((folder / "train").glob("*.bin"))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), ["not finished (no manifest.json)", "tst prepare"]),
        (lambda folder: (folder / "manifest.json").write_text('{"version": 1, '), ["manifest.json' can't be under"]),
        (lambda folder: swap_for_folder(folder / "manifest.json"), ["not finished (no manifest.json)"]),
        (lambda folder: cut(chunk(folder)), [".bin' has ", "were recorded: restore it"]),
        (lambda folder: chunk(folder).unlink(), [".bin' is missing: restore it"]),
        (lambda folder: swap_for_folder(chunk(folder)), [".bin' is missing"]),
        (lambda folder: cut(folder / "train" / "index.json"), ["index.json' can't be understood"]),
        (
            lambda folder: (folder / "val" / "index.json").write_text('{"chunks": []}'),
            ["index.json' is damaged", "it lists 0 chunks"],
        ),
        (change_tokenizer, ["tokenizer.json' is not the tokenizer that the shards were made with", "restore it"]),
        (lambda folder: cut(folder / "tokenizer.json"), ["tokenizer.json' can't be understood"]),
    ],
)
def test_damaged_shards(refused: Refused, shards: Path, tmp_path: Path, damage: Any, says: list[str]) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    damage(folder)
    said = refused(data__shards=str(folder))
    for part in says:
        assert part in said
    assert not (tmp_path / "run").exists(), "refused before training"


# -- checkpoints --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A finished run of four steps, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(folder / "run", shards, trainer__max_steps=4, trainer__val_check_interval=2)
    (folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["fit", "--config", str(folder / "run.yaml")]) == 0
    return folder / "run"


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize("content", ["cut", "empty", "text", "other", "objects"])
def test_unreadable_checkpoint(refused: Refused, finished: Path, tmp_path: Path, command: str, content: str) -> None:
    path = tmp_path / "bad.ckpt"
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
    if content in ("cut", "empty", "text"):
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[content])
    else:
        torch.save({"weights": torch.ones(1) if content == "other" else Path("x")}, path)
    said = refused("--ckpt_path", str(path), code=1, command=command)
    assert f"'{path}'" in said and "--ckpt_path" in said


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (f"{MODEL}.intermediate_size", 96, ["of another model", "(32, 64) in it, (32, 96) here"]),
        (f"{MODEL}.num_hidden_layers", 3, ["of another model", "layers.2", "none in it"]),
        ("data.batch_size", 2, ["another data layout (batch_size: 4 in the checkpoint, 2 now)", "Restore"]),
        ("data.seed", 2, ["another data layout (seed: 1 in the checkpoint, 2 now)"]),
        (
            "model.optimizer",
            {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            ["another model.optimizer", "SGD"],
        ),
    ],
)
def test_checkpoint_of_another_run(refused: Refused, finished: Path, path: str, value: Any, says: list[str]) -> None:
    switch = next((finished / "checkpoints").glob("switch-*"))
    changes = {"trainer__max_steps": 4, "trainer__val_check_interval": 2}
    said = refused("--ckpt_path", str(switch), edit=put(path, value), **changes)
    for part in says:
        assert part in said


def test_run_folder_that_holds_a_run(refused: Refused, finished: Path, tmp_path: Path) -> None:
    said = refused("--run_dir", str(finished))
    assert "already holds a run (finished at step 4 of 4)" in said and "--ckpt_path last" in said
    for damaged in ("{", "[]"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "run.json").write_text(damaged)
        assert "run.json' is damaged" in refused(code=1)


def test_run_folder_that_is_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused("--run_dir", str(tmp_path / "file" / "run"), code=1)


def test_nothing_to_score(refused: Refused) -> None:
    assert "there is no last checkpoint" in refused(command="validate")


# -- on the way ---------------------------------------------------------------------------------------------------


class Overflow(Callback):
    """Makes the loss infinite for real: sets the LM head so that logits overflow, when step ``step`` is to be taken."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.model.head.fill_(3e38)


def overflow_at(step: int) -> str:
    return f'--trainer.callbacks+={{"class_path": "{__name__}.Overflow", "init_args": {{"step": {step}}}}}'


def assert_finite(folder: Path) -> list[str]:
    paths = sorted(folder.rglob("*.ckpt"))
    for path in paths:
        for name, value in torch.load(path, weights_only=True)["state_dict"].items():
            assert torch.isfinite(value).all(), (path, name)
    return [path.name for path in paths]


@pytest.mark.parametrize(("accumulate", "log_every"), [(1, 1), (1, 100), (2, 1), (2, 100)])
def test_non_finite_loss(refused: Refused, tmp_path: Path, accumulate: int, log_every: int) -> None:
    changes = {
        "trainer__accumulate_grad_batches": accumulate,
        "trainer__val_check_interval": 5 * accumulate,
        "trainer__log_every_n_steps": log_every,
    }
    said = refused(overflow_at(7), code=1, **changes)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"the loss was not finite at step 7, phase 'superposition'; the last good checkpoint is {last}" in said
    assert "learning rate" in said
    assert assert_finite(tmp_path / "run") == ["best-step=5.ckpt", "last.ckpt"]
    assert torch.load(last, weights_only=True)["global_step"] == 5


def test_learning_rate_that_ruins_the_weights(refused: Refused, tmp_path: Path) -> None:
    # The weights are infinite after step 0, whose loss was fine; a checkpoint is due before the next loss is known.
    said = refused("--model.optimizer.init_args.lr", "1e39", code=1, trainer__val_check_interval=1)
    assert "not finite at step 0, phase 'superposition'; no checkpoint had been written yet" in said
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_full_disk(tmp_path: Path, shards: Path) -> None:
    """A file system with room for two checkpoints and not for a third: those on it stay whole."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    inside = f"mount -t tmpfs -o size=1300k none {disk} && "
    if not shutil.which("unshare") or subprocess.run([*mount, inside + "true"], capture_output=True).returncode:
        pytest.skip("no user namespace with a tmpfs of its own here")
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tiny_config(disk / "run", shards), sort_keys=False))
    command = f"{sys.executable} -m tst_lightning fit --config {config}; code=$?;"
    command += f" cp -r {disk}/run {tmp_path}/kept; exit $code"
    done = subprocess.run([*mount, inside + command], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: checkpoint '") and done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr and "--ckpt_path last" in done.stderr
    assert assert_finite(tmp_path / "kept") == ["best-step=5.ckpt", "last.ckpt"]
    assert not list((tmp_path / "kept").rglob("*.ckpt.partial"))

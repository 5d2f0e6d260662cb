"""Mixtures: exact proportions, one tokenizer, and a run over two corpora with everything that it logs."""

import csv
import json
import re
import sysconfig
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import tiny_config
from tests.test_resume import assert_same_state, last, signal_at
from tst_lightning.__main__ import main
from tst_lightning.data.corpora import CorpusShare, open_corpora
from tst_lightning.data.mixture import Mixture
from tst_lightning.errors import ConfigError
from tst_lightning.metrics import NextTokenMetrics, score_mixture

ROWS, SEQ_LEN, BAG = 4, 16, 4


class Endless:
    """A reader of blocks that say which corpus they are from."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __next__(self) -> torch.Tensor:
        return torch.tensor([self.number])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 300))
def test_no_corpus_is_a_block_ahead_of_its_share(parts: list[int], count: int) -> None:
    readers: Any = [Endless(number) for number in range(len(parts))]
    blocks, corpora = Mixture(readers, parts).take(count)
    assert torch.equal(blocks[:, 0], corpora)
    drawn = [0] * len(parts)
    for n, corpus in enumerate(corpora.tolist(), 1):
        drawn[corpus] += 1
        shares = [Fraction(part * n, sum(parts)) for part in parts]
        assert all(have < share + 1 for have, share in zip(drawn, shares, strict=True))
        assert all(have > share - len(parts) + 1 or have >= share for have, share in zip(drawn, shares, strict=True))
        if n % sum(parts) == 0:
            assert drawn == shares  # exact whenever the shares are whole


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 40), st.integers(1, 40))
def test_state_goes_around(parts: list[int], before: int, after: int) -> None:
    class Stateful(Endless):
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    def mixture() -> Mixture:
        readers: Any = [Stateful(number) for number in range(len(parts))]
        return Mixture(readers, parts)

    whole = mixture().take(before + after)[1].tolist()
    first, second = mixture(), mixture()
    begun = first.take(before)[1].tolist() if before else []
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + second.take(after)[1].tolist() == whole


def test_scores_of_a_mixture_are_weighted_by_share() -> None:
    metrics = {"a": NextTokenMetrics(2.0), "b": NextTokenMetrics(4.0)}
    for metric, total, count in ((metrics["a"], 20.0, 10), (metrics["b"], 4.0, 1)):
        metric.total += total
        metric.count += count
    scores = score_mixture(metrics, {"a": 0.75, "b": 0.25})
    assert scores["loss"] == 0.75 * 2 + 0.25 * 4
    assert scores["loss/a"] == 2 and scores["loss/b"] == 4 and scores["tokens"] == 11
    bits = scores["loss"].item() / torch.log(torch.tensor(2.0)).item()
    assert scores["bits_per_byte"].item() == pytest.approx(bits / (0.75 * 2 + 0.25 * 4))
    assert score_mixture({"a": metrics["a"]}, {"a": 1.0}).keys() == {"loss", "perplexity", "bits_per_byte", "tokens"}


@pytest.fixture(scope="module")
def second(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More modules, tokenised with the first corpus' tokenizer, as a user would."""
    folder = tmp_path_factory.mktemp("second") / "shards"
    stdlib = Path(sysconfig.get_path("stdlib"))
    sources = [str(stdlib / f"{name}.py") for name in ("locale", "numbers", "operator", "optparse", "pathlib")]
    command = ["prepare", *sources, "--out", str(folder), "--tokenizer", str(shards), "--val_share", "0.3"]
    assert main(command) == 0
    return folder


def of(shards: Path, second: Path, weight: float = 0.25) -> dict[str, Any]:
    return {
        "data__shards": {
            "first": {"path": str(shards), "weight": 1 - weight},
            "second": {"path": str(second), "weight": weight},
        }
    }


def test_the_tokenizer_of_one_corpus_serves_the_next_by_folder_or_file(shards: Path, second: Path) -> None:
    one, other = open_corpora({"a": CorpusShare(str(shards), 7), "b": CorpusShare(str(second), 0.5)})
    assert one.manifest.tokenizer_sha256 == other.manifest.tokenizer_sha256
    assert (one.parts, other.parts) == (14, 1) and one.share == pytest.approx(14 / 15)


def test_a_mixed_run_logs_each_corpus_and_resumes_bit_equal(
    fit: Any, shards: Path, second: Path, tmp_path: Path
) -> None:
    mixture = of(shards, second)
    assert fit("whole", **mixture)[0] == 0
    for stop in (3, 11):
        assert fit("pieces", "--ckpt_path", "last", *signal_at(stop), **mixture)[0] == 128 + 15
    assert fit("pieces", "--ckpt_path", "last", **mixture)[0] == 0
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "pieces"))
    with open(tmp_path / "whole" / "csv" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    tokens = [row for row in rows if row["compute/tokens/first"]][-1]
    read = {name: float(tokens[f"compute/tokens/{name}"]) for name in ("first", "second")}
    assert sum(read.values()) == float(tokens["compute/tokens"]) == ROWS * SEQ_LEN * 10 * (BAG + 1)
    assert read["second"] / sum(read.values()) == pytest.approx(0.25, abs=BAG * SEQ_LEN * 4 / sum(read.values()))
    scored = [row for row in rows if row["val/loss"]][-1]
    assert float(scored["val/loss"]) == pytest.approx(
        0.75 * float(scored["val/loss/first"]) + 0.25 * float(scored["val/loss/second"]), rel=1e-6
    )
    assert scored["val/loss/first"] != scored["val/loss/second"]
    # A step's loss is the mean over its rows, each corpus' over its own.
    for phase in ("superposition", "recovery"):
        steps = [row for row in rows if row[f"train/{phase}/loss"]]
        assert len(steps) == 10 and any(row[f"train/{phase}/loss/second"] for row in steps)
        for row in steps:
            whole, first, other = (row[f"train/{phase}/loss{name}"] for name in ("", "/first", "/second"))
            parts = [float(part) for part in (first, other) if part]
            assert min(parts) - 1e-6 <= float(whole) <= max(parts) + 1e-6
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert {name: entry["share"] for name, entry in record["corpora"].items()} == {"first": 0.75, "second": 0.25}


def test_the_loss_of_a_corpus_is_that_of_its_shards_scored_alone(
    fit: Any, shards: Path, second: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit("run", **of(shards, second))[0] == 0
    with open(tmp_path / "run" / "csv" / "version_0" / "metrics.csv") as file:
        scored = [row for row in csv.DictReader(file) if row["val/loss"]][-1]
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    for name, folder in (("first", shards), ("second", second)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tiny_config(tmp_path / name, folder)))
        assert main(["validate", "--config", str(path), "--ckpt_path", checkpoint]) == 0
        found = re.search(r"val/loss\s+\W*([0-9.]+)", capfd.readouterr().out)
        assert found and float(found[1]) == pytest.approx(float(scored[f"val/loss/{name}"]), rel=1e-5)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "data.shards names no corpus"),
        ({"a/b": CorpusShare("x")}, "names a corpus 'a/b'; use letters"),
        ({"a": CorpusShare("x", 0.0)}, "data.shards.a.weight is 0.0; it must be above 0"),
        ({"a": CorpusShare("x", float("nan"))}, "data.shards.a.weight is nan"),
        ({"a": CorpusShare("nowhere")}, "no shards at 'nowhere'"),
    ],
)
def test_refused_mixtures(entries: dict[str, CorpusShare], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_corpora(entries)


def test_corpora_of_different_tokenizers_are_refused(fit: Any, shards: Path, tmp_path: Path, second: Path) -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    sources = [str(stdlib / f"{name}.py") for name in ("locale", "numbers", "operator", "optparse", "pathlib")]
    other = tmp_path / "other"
    assert main(["prepare", *sources, "--out", str(other), "--vocab_size", "300", "--val_share", "0.3"]) == 0
    code, said = fit("run", **of(shards, other))
    assert code == 2 and "corpora 'first' and 'second' were made with different tokenizers" in said


def test_other_weights_are_refused_on_resume(fit: Any, shards: Path, second: Path, tmp_path: Path) -> None:
    assert fit("run", *signal_at(3), **of(shards, second))[0] == 128 + 15
    code, said = fit("run", "--ckpt_path", "last", **of(shards, second, 0.5))
    assert code == 2 and "training shards or their weights" in said
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    code, said = fit("branch", "--ckpt_path", checkpoint, **of(shards, second, 0.5))
    assert code == 2
    assert "weights: [['first', 3], ['second', 1]] in the checkpoint, [['first', 1], ['second', 1]] now" in said
    # The order of corpora is that of the readers in the state.
    reordered = {"data__shards": dict(reversed(of(shards, second)["data__shards"].items()))}
    code, said = fit("branch", "--ckpt_path", checkpoint, **reordered)
    assert (
        code == 2
        and "weights: [['first', 3], ['second', 1]] in the checkpoint, [['second', 1], ['first', 3]] now" in said
    )

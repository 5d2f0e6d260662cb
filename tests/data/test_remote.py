"""Shards in a real S3 server: the same sequence as from disk, from an empty cache too, with a bound on the cache."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
import trustme
from botocore.exceptions import BotoCoreError, ClientError
from lightning.pytorch import Callback

from tests.callbacks.recorder import RECORD, recorded
from tests.data.numbered import numbered_corpus, stream
from tests.processes import free_port
from tests.test_resume import assert_same_state, last, signal_at
from tst_lightning.data.blocks import Cache
from tst_lightning.data.corpora import Corpus, open_corpora
from tst_lightning.data.rows import RowPlan
from tst_lightning.errors import ConfigError, RunError

BUCKET = "s3://corpus"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """moto's server in a process of its own, over TLS, as LitData's client wants it; the environment to reach it."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "localhost", "-p", str(port), "--ssl"]
    command += ["-c", str(folder / "server.pem"), "-k", str(folder / "server.pem")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"https://localhost:{port}",
        "AWS_CA_BUNDLE": str(folder / "ca.pem"),
        "SSL_CERT_FILE": str(folder / "ca.pem"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        deadline = time.monotonic() + 60
        while True:
            try:
                boto3.client("s3").create_bucket(Bucket="corpus")
                break
            except (BotoCoreError, ClientError):
                assert process.poll() is None and time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.2)
        yield environment
    process.kill()
    process.wait()


@pytest.fixture
def s3(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return boto3.client("s3")


def upload(client: Any, folder: Path, prefix: str) -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), "corpus", f"{prefix}/{path.relative_to(folder)}")
    return f"{BUCKET}/{prefix}"


@pytest.fixture
def numbered(tmp_path: Path, s3: Any) -> tuple[Corpus, Corpus]:
    """2,000 tokens in 20 files, on disk and in the bucket."""
    local = numbered_corpus(tmp_path / "local", chunk_tokens=100)
    return local, Corpus("all", upload(s3, tmp_path / "local", tmp_path.name), 1, 1.0, local.manifest)


PLANS = [RowPlan("a", 4, 20, 12), RowPlan("b", 1, 5, 140)]  # about two passes


def tokens(
    corpus: Corpus, cache: Cache, stop: int | None = None, state: Any = None, **options: int
) -> tuple[list, Any]:
    """The batches from a state up to batch ``stop``, and the state there."""
    each = stream([corpus], PLANS, 20, cache=cache, **options)
    if state:
        each.load_state_dict(state)
        each.expected_batches = each.batches
    rows = []
    for batch in each:
        rows.append(batch["tokens"].tolist())
        if each.batches == stop:
            break
    return rows, each.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_sequence_as_local_and_from_an_empty_cache(
    numbered: tuple[Corpus, Corpus], tmp_path: Path, workers: int
) -> None:
    local, remote = numbered
    whole, _ = tokens(local, Cache(), workers=workers)
    first, state = tokens(remote, Cache(str(tmp_path / "one")), stop=57, workers=workers)
    assert any((tmp_path / "one").rglob("*.bin"))
    rest, _ = tokens(remote, Cache(str(tmp_path / "two")), state=state, workers=workers)
    assert first + rest == whole


def size(path: Path) -> int:
    """In bytes; 0 where LitData has removed it meanwhile."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_is_bounded(numbered: tuple[Corpus, Corpus], tmp_path: Path, workers: int) -> None:
    """20 chunks of 212 bytes, of which 800 bytes may stay, and those in use and fetched ahead."""
    local, remote = numbered
    folder, most = tmp_path / "cache", 0
    rows = []
    for batch in stream([remote], PLANS, 20, workers=workers, cache=Cache(str(folder), 800)):
        rows.append(batch["tokens"].tolist())
        most = max(most, sum(size(path) for path in folder.rglob("*.bin")))
    assert rows == tokens(local, Cache(), workers=workers)[0]
    assert 0 < most <= 800 + (4 if workers == 0 else 8) * 212 < 20 * 212


def test_runs_from_bucket_and_disk_are_the_same_run(fit: Any, shards: Path, s3: Any, tmp_path: Path) -> None:
    url = upload(s3, shards, "whole")
    assert fit("local", *RECORD)[0] == 0
    changes = {"data__shards": url, "data__cache_dir": str(tmp_path / "cache")}
    code, said = fit("remote", *RECORD, *signal_at(12), **changes)
    assert code == 128 + 15, said
    code, said = fit("remote", "--ckpt_path", "last", **changes | {"data__cache_dir": str(tmp_path / "empty")})
    assert code == 0, said
    assert_same_state(last(tmp_path / "local"), last(tmp_path / "remote"))
    # A run may also go on from the other place.
    assert fit("moved", *signal_at(12), **changes)[0] == 128 + 15
    assert fit("moved", "--ckpt_path", "last", data__cache_dir=str(tmp_path / "cache"))[0] == 0
    assert_same_state(last(tmp_path / "local"), last(tmp_path / "moved"))
    assert recorded(tmp_path / "local")["batches"]


def test_no_key_or_secret_is_taken_from_the_yaml_or_written_anywhere(
    fit: Any, shards: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-write-me-down")
    changes = {"data__shards": upload(s3, shards, "secret"), "data__cache_dir": str(tmp_path / "cache")}
    assert fit("run", **changes)[0] == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if b"do-not-write-me-down" in path.read_bytes()]


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("truncated", 2, "/train/chunk-0-0.bin' has "),
        ("missing", 2, "/train/chunk-0-0.bin' is missing, "),
        ("flipped", 1, "chunk-0-0.bin' is damaged (sha256 "),
        ("lost on the way", 1, "/train/chunk-0-0.bin' can't be fetched (Timed out"),
    ],
)
def test_a_damaged_object_is_named_and_nothing_hangs(
    fit: Any, shards: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int, message: str
) -> None:
    prefix = f"damaged-{kind.replace(' ', '-')}"
    url, key = upload(s3, shards, prefix), f"{prefix}/train/chunk-0-0.bin"
    data = (shards / "train" / "chunk-0-0.bin").read_bytes()
    arguments: tuple[str, ...] = ()
    if kind == "missing":
        s3.delete_object(Bucket="corpus", Key=key)
    elif kind == "lost on the way":
        monkeypatch.setattr("litdata.streaming.item_loader._MAX_WAIT_TIME", 2)  # seconds; 120 by LitData's default
        arguments = (
            f'--trainer.callbacks+={{"class_path": "tests.data.test_remote.Remover", "init_args": {{"key": "{key}"}}}}',
        )
    else:
        body = data[:-10] if kind == "truncated" else data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
        s3.put_object(Bucket="corpus", Key=key, Body=body)
    found, said = fit("run", *arguments, data__shards=url, data__cache_dir=str(tmp_path / "cache"))
    assert found == code, said
    assert message in said and "Traceback" not in said


class Remover(Callback):
    """Deletes an object after the start's check of the bucket, before anything is read."""

    def __init__(self, key: str) -> None:
        self.key = key

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        boto3.client("s3").delete_object(Bucket="corpus", Key=self.key)


def test_unreachable_or_absent_shards_are_one_clear_error(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="there is no 's3://corpus/nowhere/manifest.json'"):
        open_corpora(f"{BUCKET}/nowhere")
    with pytest.raises(ConfigError, match="only local folders and s3:// are supported"):
        open_corpora("gs://corpus/code")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://localhost:9")
    with pytest.raises(RunError, match="'s3://corpus/code/manifest.json' can't be read: .*AWS_ENDPOINT_URL"):
        open_corpora(f"{BUCKET}/code")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(RunError, match="credentials"):
        open_corpora(f"{BUCKET}/code")

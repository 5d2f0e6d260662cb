"""Devices: what a run's process sees of the machine."""

import os

import pytest

from tst_lightning.errors import ConfigError
from tst_lightning.sweep.devices import parse_devices


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_cpu_runs_share_the_cores_and_see_no_gpu() -> None:
    cores = len(os.sched_getaffinity(0))
    two = parse_devices("cpu:2")
    assert [device.name for device in two] == ["cpu 0", "cpu 1"]
    assert all(d.environment == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(max(1, cores // 2))} for d in two)
    assert parse_devices("cpu")[0].environment["OMP_NUM_THREADS"] == str(cores)
    assert parse_devices("cpu:500")[0].environment["OMP_NUM_THREADS"] == "1"


def test_threads_that_the_user_has_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in parse_devices("cpu:2")[0].environment


def test_gpus() -> None:
    assert [d.environment["CUDA_VISIBLE_DEVICES"] for d in parse_devices("0,3,GPU-1a-2b")] == ["0", "3", "GPU-1a-2b"]
    assert [d.environment["CUDA_VISIBLE_DEVICES"] for d in parse_devices("0+1,2+3")] == ["0,1", "2,3"]


def test_auto_is_every_visible_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [device.name for device in parse_devices("auto")] == ["gpu 4", "gpu 5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [device.name for device in parse_devices("auto")] == ["cpu"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [device.name for device in parse_devices("auto")] == ["cpu"]
    tool = tmp_path / "nvidia-smi"  # type: ignore[operator]
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1g'\necho 'GPU 1: B (UUID: y)'\n")
    tool.chmod(0o755)
    assert [device.name for device in parse_devices("auto")] == ["gpu 0", "gpu 1"]


@pytest.mark.parametrize("text", ["", "cpu:0", "cpu:x", "gpu", "0,,1", "0 1", "cuda:0", "0+"])
def test_refusals(text: str) -> None:
    with pytest.raises(ConfigError, match="--devices is '.*'; give auto, cpu:2"):
        parse_devices(text)

import shutil

import pytest


@pytest.mark.parametrize(
    ("split", "arguments", "refused"),
    [
        ("val", [], True),
        ("train", ["--data.verify_train", "true"], True),
        ("train", ["--trainer.max_steps", "5"], False),
    ],
)
def test_one_flipped_byte_in_a_shard_is_found(fit, shards, tmp_path, split, arguments, refused):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    path = copy / split / "chunk-0-0.bin"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # the low byte of a token: the id stays within the vocabulary
    path.write_bytes(data)
    code, out = fit("run", *arguments, data__shards=str(copy))
    assert code == (1 if refused else 0), out
    assert (f"error: '{path}' is damaged (sha256 " in out) == refused
    assert "Traceback" not in out
    if refused:
        assert len(out.strip().splitlines()) == 1
        assert not (tmp_path / "run/run.json").exists()

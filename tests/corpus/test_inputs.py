import os

import pytest

from tst_lightning.corpus.inputs import find_sources
from tst_lightning.errors import ConfigError


def test_inputs_are_resolved_in_order_and_once(tmp_path, monkeypatch):
    for name in [
        "b/2.txt",
        "b/1.txt",
        "b/c/3.md",
        "b/picture.png",
        "b/.hidden.txt",
        "b/.git/x.txt",
        "a.jsonl",
        "B.TXT",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert [source.name for source in find_sources(["b"])] == ["1.txt", "2.txt", "c/3.md"]
    assert [source.name for source in find_sources(["B.TXT", "b/2.txt", "b"])] == ["B.TXT", "2.txt", "1.txt", "c/3.md"]
    assert [source.name for source in find_sources(["b/**/*.*"])] == ["1.txt", "2.txt", "3.md"]
    assert [source.name for source in find_sources(["a.jsonl", "link.txt"])] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing.txt", "input 'nothing.txt' matches no file or folder"),
        ("*.nothing", "input '\\*.nothing' matches no file or folder"),
        ("x.png", "input 'x.png' has no known suffix; known are .*\\.txt.*\\.jsonl.gz.*\\.parquet"),
        ("pictures", "no file of 'pictures' has a known suffix; known are"),
        ("*.png", "no file of '\\*.png' has a known suffix; known are"),
    ],
)
def test_inputs_that_give_nothing_are_refused(tmp_path, monkeypatch, given, message):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/y.png").touch()
    (tmp_path / "x.png").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find_sources([given])


@pytest.fixture
def linked(tmp_path, monkeypatch):
    """A folder of texts with links of every kind, beside something that is nobody's business."""
    monkeypatch.chdir(tmp_path)
    for name in ("secret/key.txt", "secret/deep/key.txt", "in/a.txt", "in/sub/b.txt", "real/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for link, to in {
        "in/file.txt": "../secret/key.txt",
        "in/absolute.txt": str(tmp_path / "secret/key.txt"),
        "in/folder": "../secret",
        "in/chain.txt": "sub/chain.txt",  # stays inside at first
        "in/sub/chain.txt": "../folder/key.txt",
        "in/device.txt": "/dev/zero",
        "in/nowhere.txt": "missing.txt",
        "in/round.txt": "round.txt",
        "in/loop": ".",
        "in/sub/loop": "..",
        "in/within.txt": "sub/b.txt",
        "in/prefix.txt": "../in2/d.txt",  # the name begins as the folder's does
        "named": "real",
        "named.txt": "secret/key.txt",
    }.items():
        (tmp_path / link).symlink_to(to)
    (tmp_path / "in2").mkdir()
    (tmp_path / "in2/d.txt").write_text("d")
    os.mkfifo(tmp_path / "in/pipe.txt")
    return tmp_path


OUT = {"file.txt", "absolute.txt", "chain.txt", "sub/chain.txt", "device.txt", "nowhere.txt", "round.txt", "prefix.txt"}


def test_links_out_of_a_folder_are_noted_and_not_followed(linked):
    outside = []
    assert [source.name for source in find_sources(["in"], outside)] == ["a.txt", "within.txt"]
    assert {path.relative_to("in").as_posix() for path in outside} == OUT | {"folder"}
    assert len(outside) == len(set(outside))


@pytest.mark.parametrize("pattern", ["in/*.txt", "in/**/*.txt", "in/*/*.txt", "in/*/*/*.txt", "in/**", "in/*", "i?/*"])
def test_nor_are_links_out_of_a_glob(linked, pattern):
    outside = []
    try:
        found = find_sources([pattern], outside)
    except ConfigError:
        found = []
    inside = os.path.realpath("in") if not pattern.startswith("i?") else os.path.realpath(".")
    for source in found:
        assert os.path.realpath(source.path).startswith(inside + "/"), source
    if pattern != "i?/*":  # that one starts from here
        assert not {os.path.realpath(source.path) for source in found} & {os.path.realpath("secret/key.txt")}
        assert outside


def test_what_is_named_itself_may_be_a_link(linked):
    outside = []
    assert [source.name for source in find_sources(["named", "named.txt"], outside)] == ["c.txt", "named.txt"]
    assert outside == []


def test_links_that_lead_round_take_no_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("a")
    for name in "bcdef":  # glob.glob would go through 5 ** 40 of them
        (tmp_path / "in" / name).symlink_to(".")
    for given in ("in", "in/**/*.txt", "in/**"):
        assert [source.name for source in find_sources([given])] == ["a.txt"]


def test_what_is_left_when_all_is_linked_is_named(linked):
    (linked / "only").mkdir()
    (linked / "only/x.txt").symlink_to("../secret/key.txt")
    for given in ("only", "only/*.txt"):
        with pytest.raises(ConfigError, match="has a known suffix .1 links that lead out of it aside."):
            find_sources([given])


def test_a_pipe_is_refused_and_not_waited_for(linked):
    with pytest.raises(ConfigError, match="input 'in/pipe.txt' is no regular file"):
        find_sources(["in/pipe.txt"])


@pytest.mark.parametrize("given", ["in/a**b", "***", "[", "**/..", "in/**/../../secret/*.txt"])
def test_odd_globs_end_in_one_line(linked, given):
    try:
        found = find_sources([given])
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        inside = os.path.realpath("in" if given.startswith("in") else ".")
        assert all(os.path.realpath(source.path).startswith(inside) for source in found)

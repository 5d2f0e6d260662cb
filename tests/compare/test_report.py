"""The files of a report: JSON keys, a real image, a page that fetches nothing, a table that fits, no half reports."""

import io
import json
import os
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.compare.run_folders import TST_PHASES, write_run
from tst_lightning.compare import compare_runs
from tst_lightning.compare.report import table_text
from tst_lightning.compare.units import difference_text, flops_text, tokens_text

FILES = ["comparison.json", "loss_vs_compute.png", "report.html"]
HOSTILE = '<script src="x">$a_b$ & "tst"\nnext'


class Page(HTMLParser):
    """Tags balanced, attributes and text gathered."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    baseline = write_run(folder / "baseline", [(0, 9.0), (10, 7.0), (50, 4.0), (100, 3.0)])
    tst = write_run(
        folder / "tst",
        [(0, 9.0), (10, 8.0), (20, 6.0), (50, 3.5), (100, 2.5)],
        bag_steps=20,
        name=HOSTILE,
        phases=TST_PHASES,
        learning_rate=0.002,
    )
    out = folder / "out" / "deep"
    return compare_runs([baseline, tst], str(out)), out


def test_the_three_files_and_no_others(compared):
    assert sorted(os.listdir(compared[1])) == FILES


def test_json_is_what_was_returned(compared):
    comparison, out = compared
    assert json.loads((out / FILES[0]).read_text()) == comparison
    assert {"runs", "equal_flops", "equal_loss", "equal_data", "notes"} <= comparison.keys()
    baseline, tst = comparison["runs"]
    assert (baseline["name"], baseline["final_val_loss"], baseline["flops"]) == ("baseline", 3.0, 1000)
    assert (tst["tokens"], tst["positions"], tst["seconds"], tst["parameters"]) == (16000, 10000, 50.0, 1_300_000)
    assert tst["switch"] == [{"phase": "recovery", "step": 20, "flops": 200.0, "tokens": 8000}]
    assert comparison["equal_flops"]["difference"] == -0.5
    assert comparison["equal_loss"]["speedup"] == 1000 / 750
    assert comparison["equal_loss"]["reverse"][HOSTILE]["speedup"] is None


def test_the_chart_is_an_image_with_both_lines(compared):
    image = Image.open(compared[1] / FILES[1])
    image.load()
    assert image.format == "PNG"
    assert 1200 <= image.width <= 2400 and 500 <= image.height <= 1600
    colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(0xFF, 0xFF, 0xFF), (0x55, 0x55, 0x55), (0xD5, 0x5E, 0x00)} <= colours


def test_the_page_fetches_nothing_and_escapes_names(compared):
    text = (compared[1] / FILES[2]).read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"https?:|url\(|@import", text)
    images = [value for key, value in page.attributes if key in ("src", "srcset", "href")]
    assert len(images) == 2
    assert all(value.startswith("data:image/png;base64,") for value in images)
    assert HOSTILE in page.text


def test_the_page_tells_definitions_notes_and_differences(compared):
    comparison, out = compared
    text = Page((out / FILES[2]).read_text()).text
    for words in ("Equal FLOPs", "Equal loss", "Equal data", "linear interpolation", *comparison["notes"]):
        assert words in text
    for words in (
        "learning_rate",
        "0.002",
        "superposition (20 steps, bag size 4), then recovery (80 steps, bag size 1)",
    ):
        assert words in text
    assert "tokenizer_sha256" not in text  # what is the same in all runs is left out


def test_the_table_fits_and_tells_all(compared):
    text = table_text(compared[0])
    assert max(map(len, text.splitlines())) <= 100
    assert "speedup" not in text.splitlines()[0]
    assert re.search(r"^baseline +3\.0000 +1\.5000 +1\.00 kFLOP +10\.0k +50\.0 +100 +1 +finished$", text, re.M)
    assert "equal FLOPs (1.00 kFLOP): baseline 3.0000" in text
    assert "1.33x (at 750 FLOP), reverse not" in text
    assert "equal data (10.0k tokens): baseline 3.0000" in text


def test_the_table_fits_with_long_names_and_great_numbers(tmp_path):
    names = ["a" * 60, "b" * 60, "c" * 60]
    paths = [write_run(tmp_path / name, flops_per_step=10**20, seed=123456) for name in names]
    text = table_text(compare_runs(paths, str(tmp_path / "out")))
    assert max(len(line) for line in text.splitlines() if line.strip()) <= 100
    assert "1.00 ZFLOP" not in text and "10.0 ZFLOP" in text


def test_more_runs_than_colours_and_single_points(tmp_path):
    paths = [write_run(tmp_path / f"run{i}", [(100, 3.0 + i % 2)]) for i in range(8)]
    comparison = compare_runs(paths, str(tmp_path / "out"))
    assert len(comparison["equal_flops"]["differences"]) == 7
    Image.open(io.BytesIO((tmp_path / "out" / FILES[1]).read_bytes())).load()


def test_a_failure_leaves_an_earlier_report_whole(tmp_path, monkeypatch):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    out = tmp_path / "out"
    out.mkdir()
    (out / FILES[2]).write_text("earlier")

    write = type(out).write_bytes

    def full(self, contents):
        if "html" in self.name:
            raise OSError(28, "No space left on device", str(self))
        return write(self, contents)

    monkeypatch.setattr(type(out), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        compare_runs(paths, str(out))
    assert os.listdir(out) == [FILES[2]]
    assert (out / FILES[2]).read_text() == "earlier"


def test_quantities():
    assert [flops_text(x) for x in (0, 999, 1000, 12.34e12, 999.6e12, 3e24)] == [
        "0 FLOP", "999 FLOP", "1.00 kFLOP", "12.3 TFLOP", "1.00 PFLOP", "3.00 YFLOP",
    ]  # fmt: skip
    assert [tokens_text(x) for x in (4_096_000, 99_960, 999.4)] == ["4.10M", "100k", "999"]
    assert [difference_text(x) for x in (-0.00001, 0.25, None)] == ["+0.0000", "+0.2500", "-"]

"""The files of a report: JSON keys, real images, a page that fetches nothing and tells all, no half reports."""

import io
import json
import os
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.compare.run_folders import TST_PHASES, write_run
from tst_lightning.compare import compare_runs, report
from tst_lightning.compare.arms import arms_of
from tst_lightning.compare.loss_chart import draw_losses
from tst_lightning.compare.page import render_page
from tst_lightning.compare.report import judge
from tst_lightning.compare.runs import read_runs
from tst_lightning.compare.speedup_chart import draw_speedups
from tst_lightning.compare.units import difference_text, flops_text, tokens_text

FILES = ["comparison.json", "loss_vs_compute.png", "report.html", "speedup_vs_loss.png"]
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


def test_the_files_and_no_others(compared):
    assert sorted(os.listdir(compared[1])) == FILES


def test_json_is_what_was_returned(compared):
    comparison, out = compared
    assert json.loads((out / FILES[0]).read_text()) == comparison
    assert {"runs", "arms", "equal_flops", "equal_loss", "equal_data", "equal_time", "notes"} <= comparison.keys()
    assert {"reference", "flops_convention", "interpolation", "equal_loss_completed"} <= comparison.keys()
    assert comparison["tolerance"] == {"flops": 0.005, "tokens": 0.005, "seconds": 0.2}
    baseline, tst = comparison["runs"]
    assert (baseline["name"], baseline["final_val_loss"], baseline["flops"]) == ("baseline", 3.0, 1000)
    assert (tst["tokens"], tst["positions"], tst["seconds"], tst["parameters"]) == (16000, 10000, 50.0, 1_300_000)
    assert tst["switch"] == [{"phase": "recovery", "step": 20, "flops": 200.0, "tokens": 8000, "seconds": 10.0}]
    assert comparison["equal_flops"]["difference"] == -0.5
    assert comparison["equal_loss"]["speedup"] == 1000 / 750
    assert comparison["equal_loss"]["reverse"][HOSTILE]["speedup"] is None


@pytest.mark.parametrize(
    ("file", "lines"), [(FILES[1], {(0x55, 0x55, 0x55), (0xD5, 0x5E, 0x00)}), (FILES[3], {(0xD5, 0x5E, 0x00)})]
)
def test_a_chart_is_an_image_with_its_lines(compared, file, lines):
    image = Image.open(compared[1] / file)
    image.load()
    assert image.format == "PNG"
    assert 1200 <= image.width <= 2400 and 500 <= image.height <= 1600
    colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(0xFF, 0xFF, 0xFF), *lines} <= colours


def test_the_page_fetches_nothing_and_escapes_names(compared):
    text = (compared[1] / FILES[2]).read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"https?:|url\(|@import", text)
    images = [value for key, value in page.attributes if key in ("src", "srcset", "href")]
    assert len(images) == 4  # two charts, light and dark
    assert all(value.startswith("data:image/png;base64,") for value in images)
    assert HOSTILE in page.text


def test_the_page_tells_definitions_notes_and_differences(compared):
    comparison, out = compared
    text = Page((out / FILES[2]).read_text()).text
    for words in ("Equal FLOPs", "Equal loss", "Equal data", "Equal time: loss at 50.0 s", *comparison["notes"]):
        assert words in text
    for words in ("linear interpolation", "It has a tolerance of 20%, since step times vary by as much", "within 0.5%"):
        assert words in text
    for words in ("its folder holds no config.yaml", "no experiment was run at two lengths"):
        assert words in text
    for words in (
        "learning_rate",
        "0.002",
        "superposition (20 steps, bag size 4), then recovery (80 steps, bag size 1)",
    ):
        assert words in text
    assert "tokenizer_sha256" not in text  # what is the same in all runs is left out


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """Baselines of 50 and 100 steps and TST of 50, two seeds each; one folder has a configuration."""
    folder = tmp_path_factory.mktemp("seeded")
    paths = []
    for seed, shift in ((1, 0.0), (2, 0.2)):
        for name, steps, end, more in (
            ("baseline", 50, 4.0, {}),
            ("baseline", 100, 3.0, {}),
            ("tst", 50, 3.5, {"optimizer": "Muon", "device_name": f"machine {seed}"}),
        ):
            phases = [dict(TST_PHASES[1], first_step=0, steps=steps, settings={"share": None})]
            path = folder / f"{name}-{steps}-seed{seed}"
            more = more | {"max_steps": steps, "step": steps, "seed": seed, "phases": phases}
            paths.append(write_run(path, [(5, 8.0), (20, 6.0), (steps, end + shift)], **more))
    (folder / "tst-50-seed2" / "config.yaml").write_text(f"note: {HOSTILE}\nrun_dir: /elsewhere/tst\n")
    return compare_runs(paths, str(folder / "out")), folder / "out"


def test_a_report_over_seeds(seeded):
    comparison, out = seeded
    assert json.loads((out / FILES[0]).read_text()) == comparison
    assert [arm["name"] for arm in comparison["arms"]] == ["baseline-50", "baseline-100", "tst-50"]
    tst = comparison["arms"][2]
    assert tst["runs"] == ["tst-50-seed1", "tst-50-seed2"] and tst["seeds"] == [1, 2]
    assert tst["equal_flops"]["difference"]["mean"] == pytest.approx(-0.5)
    assert comparison["equal_time"] is None  # the device of tst differs
    (row,) = comparison["equal_loss_completed"]["speedups"]
    # 3.5 lies half-way between the baselines' 4.0 at 500 FLOPs and 3.0 at 1,000.
    assert row["speedup"]["mean"] == pytest.approx(2**0.5) and row["speedup"]["pairs"] == 2


def test_the_page_over_seeds(seeded):
    page = Page((seeded[1] / FILES[2]).read_text())
    assert not page.tags & {"script", "link", "iframe", "object", "base"}
    text = page.text
    for words in (
        "6 runs in 3 arms",
        "tst-50 against",
        "3.6000 ± 0.1414",
        "2 pairs, by seed",
        "-0.5000",
        "1.41x",
        f"note: {HOSTILE}\nrun_dir: /elsewhere/tst",
        "machine 2",
        "recovery (50 steps, bag size 1, share null)",
        "Not asked; the notes say why.",
        "Equal time is not asked: device (device_name) differ",
    ):
        assert words in text


def reported(paths):
    """What compare_runs does but for the files and the dark pictures, which cost half of its time."""
    runs = read_runs(paths)
    arms = arms_of(runs)
    comparison = judge(runs, arms)
    pictures = draw_losses(arms, True), draw_speedups(arms, None)
    for png in pictures:
        Image.open(io.BytesIO(png)).load()
    Page(render_page(comparison, arms, dict.fromkeys(run.name for run in runs), pictures, pictures))
    return comparison


def test_one_arm_is_no_comparison_but_a_report(tmp_path):
    paths = [write_run(tmp_path / f"a{seed}", seed=seed) for seed in (1, 2)]
    comparison = reported(paths)
    assert [arm["runs"] for arm in comparison["arms"]] == [["a1", "a2"]]
    assert comparison["arms"][0]["equal_flops"]["mean"] == 3.0


def test_more_runs_than_colours_and_single_points(tmp_path):
    paths = [write_run(tmp_path / f"run{i}", [(100, 3.0 + i % 2)]) for i in range(8)]
    comparison = reported(paths)
    assert len(comparison["equal_flops"]["differences"]) == 7


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
    for draw in ("draw_losses", "draw_speedups"):  # slow, and what is in a picture does not matter here
        monkeypatch.setattr(report, draw, lambda *_: b"picture")
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

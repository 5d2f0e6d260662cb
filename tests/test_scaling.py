"""docs/scaling.md quotes what its scripts computed, and nothing else."""

import json
import re

from tests.conftest import ROOT
from tests.test_paper_configs import model_config
from tst_lightning.modeling import count_parameters

DOCUMENT = (ROOT / "docs" / "scaling.md").read_text()
RESULT = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())
QUANTITY = re.compile(r"\d[\d,.]*(?:%| ?(?:[kMGTP]B(?:/s)?|PFLOP/s|s|hours|days|minutes)\b)")


def test_the_tables_are_the_results() -> None:
    for name, content in RESULT["tables"].items():
        assert f"<!-- {name} -->\n{content}\n<!-- end -->" in DOCUMENT


def test_figures_in_the_prose_stand_in_a_table() -> None:
    prose = re.sub(r"<!-- (?!end)(.|\n)*?<!-- end -->", "", DOCUMENT)
    quoted = QUANTITY.findall(prose)
    assert len(quoted) >= 2 and [figure for figure in quoted if figure not in "".join(RESULT["tables"].values())] == []


def test_every_figure_says_what_kind_it_is() -> None:
    figures = [figure for group in RESULT["figures"].values() for figure in group]
    assert {figure["kind"] for figure in figures} == {"measured", "counted", "published", "estimated"}
    assert all(figure["how"] for figure in figures)


def test_what_was_counted_is_counted_so_today() -> None:
    checkpoint = next(figure for figure in RESULT["figures"]["checkpoints"] if figure["what"] == "a checkpoint")
    assert checkpoint["value"] == 12 * count_parameters(model_config("10b_a1b")).total

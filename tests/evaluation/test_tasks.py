"""The paper's suite by the harness's own names; and data that are not to be had."""

import csv
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from tst_lightning import published
from tst_lightning.evaluation.tasks import PAPER_TASKS, load_tasks

NOWHERE = "http://127.0.0.1:9"  # where nobody listens


class Front(http.server.BaseHTTPRequestHandler):
    """A hub that answers, and no more."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def front() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_papers_suite_on_a_hub_that_answers_but_gives_no_data(
    front: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (Path(published.__file__).parent / "main_results.csv").open() as file:
        columns = next(csv.reader(file))
    assert sorted(PAPER_TASKS) == sorted(columns[columns.index("final_loss") + 1 :])
    # All of the harness's files are not looked through: that takes seconds.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", "/nowhere/manager.py")
    monkeypatch.setattr(constants, "ENDPOINT", front)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + "/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    tasks = load_tasks(["paper", "arc_easy"], None)
    assert list(tasks.failed) == list(PAPER_TASKS) and not tasks.loaded and tasks.offline
    assert all(why.startswith("ConnectionError: Couldn't reach '") for why in tasks.failed.values())
    assert 0 < len(waited) < 8, "the hub's library tries again for the first task, and for no other"
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_data_of_a_task_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    (tmp_path / "data.jsonl").write_text('{"q": "a", ')
    (tmp_path / "task.yaml").write_text(
        "task: mine\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: q\n"
        f"dataset_kwargs: {{cache_dir: {tmp_path}, data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
    )
    tasks = load_tasks(["mine"], tmp_path)
    assert not tasks.loaded and tasks.failed["mine"].startswith("DatasetGenerationError: ")

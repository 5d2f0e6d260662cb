# Every target sets up .venv first if need be. `make help` explains them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
TST := $(BIN)/tst
RUNS := runs/quickstart
MARK := .venv/.set-up

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check format bench evidence golden clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(MARK)  ## create .venv with pinned versions and this package in it

$(MARK): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(MARK)

quickstart: $(MARK)  ## prepare real text, train the baseline and TST, compare them (under 10 minutes on two cores)
	$(TST) prepare --python_source packages --max_bytes 40000000 --vocab_size 1024 --out data/quickstart
	$(TST) fit --config configs/quickstart/baseline.yaml --ckpt_path last
	$(TST) fit --config configs/quickstart/tst.yaml --ckpt_path last
	$(TST) compare $(RUNS)/baseline $(RUNS)/tst --out $(RUNS)/report
	@echo
	@echo "report       $(RUNS)/report/report.html"
	@echo "tensorboard  $(BIN)/tensorboard --logdir $(RUNS)"
	@echo "checkpoints  $(RUNS)/baseline/checkpoints  $(RUNS)/tst/checkpoints"

test: $(MARK)  ## run the tests (about 9 minutes on two cores, no GPU, no network)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: $(MARK)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(MARK)  ## rewrite the code as `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(MARK)  ## sweep learning rate and warmup of the quickstart's arms (about an hour on two cores)
	$(BIN)/python benchmarks/quickstart_sweep.py --out benchmarks/results/quickstart_sweep.json

evidence: $(MARK)  ## does TST pay? tune both arms, train over seeds, compare (under 6 hours on two cores, the headline in 1.5; goes on where it stopped)
	$(BIN)/python benchmarks/evidence.py benchmarks/evidence/cpu.yaml --out benchmarks/results/evidence_cpu.json \
	  --pages docs/evidence.md docs/evidence_tables.md

golden: $(MARK)  ## renew the golden loss curves after a change that is meant to move them
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.test_golden

clean:  ## remove .venv, prepared data and runs of the quickstart
	rm -rf .venv data/quickstart $(RUNS)

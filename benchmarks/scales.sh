#!/usr/bin/env bash
# The paper's models on one H100 or H200, 50 steps of each phase: benchmarks/results/scales.json.
#
#     benchmarks/scales.sh                # or some of: 270m 600m 3b 10b_a1b 10b_a1b_bf16_true
#
# RESULTS is the folder for the results, SHARDS keeps the shards, LIMIT_SECONDS bounds a run. NOT YET RUN ON A GPU. Each
# model is a process of its own; the same command goes on with those that are not done.
set -uo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
python="${PYTHON:-.venv/bin/python}"

[ $# -gt 0 ] || set -- 270m 600m 3b 10b_a1b 10b_a1b_bf16_true
failed=0
for scale in "$@"; do
  "$python" benchmarks/scales.py "$scale" --out "${RESULTS:-benchmarks/results}/scales.json" \
    --shards "${SHARDS:-data/scales}" --limit_seconds "${LIMIT_SECONDS:-540}" || failed=1
done
exit "$failed"

#!/usr/bin/env bash
# Step times on one H100 or H200, at the shapes of arXiv 2605.06546: results/step_time_gpu_{270m,600m,3b}.json.
#
#     benchmarks/gpu.sh                  # or with other options of step_time.py, such as --bags 6,16 or --rounds 5
#
# NOT YET RUN ON A GPU. An arm that does not fit the memory is a result: it is named in its row, the others go on, and
# this script exits 1 at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"  # transformers' trainer would take all that it sees
python="${PYTHON:-.venv/bin/python}"
shards="$(mktemp -d)"
trap 'rm -rf "$shards"' EXIT

failed=0
for preset in 270m 600m 3b; do
  "$python" benchmarks/step_time.py --preset "$preset" --device cuda --precision bf16-mixed --compile \
    --rounds 3 --steps 20 --warmup 10 --shards "$shards/stdlib" \
    --out "benchmarks/results/step_time_gpu_$preset.json" --table "$@" || failed=1
done
exit "$failed"

#!/usr/bin/env bash
# Step times on one H100 or H200, at the shapes of arXiv 2605.06546: results/step_time_gpu_{270m,600m,3b}.json.
#
#     benchmarks/gpu.sh                  # all arms of all shapes, estimated at an hour
#     PRESETS=600m benchmarks/gpu.sh --arms "ours baseline,ours s=6,ours s=16,bare PyTorch loop" --rounds 2
#
# Options are those of step_time.py. RESULTS is the folder for the results, which are written after every turn; SHARDS
# keeps the shards. NOT YET RUN ON A GPU. An arm that does not fit the memory is a result: it is named in its row, the
# others go on, and this script exits 1 at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"  # transformers' trainer would take all that it sees
python="${PYTHON:-.venv/bin/python}"
results="${RESULTS:-benchmarks/results}"
temporary="$(mktemp -d)"
trap 'rm -rf "$temporary"' EXIT

failed=0
for preset in ${PRESETS:-600m 270m 3b}; do
  "$python" benchmarks/step_time.py --preset "$preset" --device cuda --precision bf16-mixed --compile \
    --bags 4,6,8,16 --rounds 3 --steps 20 --warmup 10 --shards "${SHARDS:-$temporary/stdlib}" \
    --out "$results/step_time_gpu_$preset.json" --table "$@" || failed=1
done
exit "$failed"

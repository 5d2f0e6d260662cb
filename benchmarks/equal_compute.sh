#!/usr/bin/env bash
# The paper's three comparisons at the quickstart's size, from nothing, in about an hour on two cores:
#   equal FLOPs  both arms at STEPS steps
#   equal data   the baseline at 1.6 times the steps reads what TST reads (s = 4, r = 0.2)
#   equal loss   both arms at three lengths, each with a schedule of its own; the speedup is read between completed runs
# Learning rate and warmup are swept first, for each arm alike; then three seeds. Everything is `tst`; the same command goes
# on after a stop. The result shows the comparisons at work, not the published gain: the model has 0.64M parameters.
# To be held against it: the setting was chosen with seed 1, which is one of the three, and at STEPS; its warmup is the same
# number of steps at every length.
#   bash benchmarks/equal_compute.sh [folder]     (DEVICES=0,1 for two GPUs, cpu:2 for two runs at a time)
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-runs/equal_compute}
TST=${TST:-.venv/bin/tst}
DEVICES=${DEVICES:-cpu:2}
STEPS=${STEPS:-1000}
LENGTHS=$((STEPS / 2)),$STEPS,$((STEPS * 8 / 5))

$TST prepare --python_source packages --max_bytes 40000000 --vocab_size 1024 --out data/quickstart
for arm in baseline tst; do
  $TST sweep --fit configs/quickstart/$arm.yaml --set trainer.max_steps="$STEPS" \
    --grid model.optimizer.init_args.lr=1e-3,2e-3,4e-3 model.lr_schedule.warmup_steps=50,200 \
    --devices "$DEVICES" --out "$OUT/tune/$arm"
done
for arm in baseline tst; do
  $TST sweep --fit "$OUT/tune/$arm/best.yaml" --grid trainer.max_steps="$LENGTHS" seed_everything,data.seed=1,2,3 \
    --devices "$DEVICES" --out "$OUT/$arm"
done

runs() { for seed in 1 2 3; do echo "$OUT/$1/max_steps$2-seed$seed"; done; }
long=$((STEPS * 8 / 5))
# shellcheck disable=SC2046
{
  $TST compare $(runs baseline "$STEPS") $(runs tst "$STEPS") --out "$OUT/equal_flops"
  $TST compare $(runs baseline "$long") $(runs tst "$STEPS") --out "$OUT/equal_data"
  $TST compare $(for n in ${LENGTHS//,/ }; do runs baseline "$n"; done) $(for n in ${LENGTHS//,/ }; do runs tst "$n"; done) \
    --out "$OUT/equal_loss"
}
${PYTHON:-.venv/bin/python} benchmarks/equal_compute_result.py "$OUT" "${RESULT:-benchmarks/results/equal_compute.json}"

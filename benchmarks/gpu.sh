#!/usr/bin/env bash
# Training steps of random models on one CUDA GPU of 80 GB in bf16, against TRL: benchmarks/gpu_*.md; and whether the fast
# log-probabilities are the plain ones there. SIZE=tiny runs every part once on a CPU, to see that it works.
# "of the matrix-product rate" is the model FLOPs utilisation against what this GPU reaches in one large product.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks}
step() { # NAME HIDDEN LAYERS PAIRS OPTIONS
    local name=$1 hidden=$2 layers=$3 pairs=$4
    shift 4
    local size=(--device cuda --dtypes bfloat16 --steps 6 --hidden "$hidden" --layers "$layers" --pairs "$pairs")
    [ "${SIZE:-}" != tiny ] || size=(--steps 2 --hidden 64 --layers 2 --pairs 1 --vocabulary 512)
    python benchmarks/train_step.py "${size[@]}" "$@" --out "$out/gpu_$name.md"
}
step 1b 2048 16 4 --cases short long --sides ours plain trl
step 1b_dpo 2048 16 4 --cases dpo --sides ours plain trl
step 4b_lora 4096 16 2 --cases lora --sides ours plain trl
step 8b_lora 4096 32 2 --cases lora --sides ours trl # the plain path's logits have no room beside 32 GB of weights
parity=()
[ "${SIZE:-}" != tiny ] || parity=(--device cpu --hidden 64 --layers 2 --vocabulary 512)
python benchmarks/gpu_parity.py "${parity[@]}"

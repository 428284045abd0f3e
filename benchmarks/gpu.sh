#!/usr/bin/env bash
# A training step at 1B and 8B shapes (random weights) on one CUDA GPU, in bf16: benchmarks/gpu_*.md.
# "of the matrix-product rate" is the model FLOPs utilisation against what this GPU reaches in one large product.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { python benchmarks/train_step.py --device cuda --dtypes bfloat16 --cases short long mixed --rounds 3 --steps 8 "$@"; }
step --hidden 2048 --layers 16 --pairs 4 --out benchmarks/gpu_1b.md
# weights, gradients and Adam's moments of 8B weights are 128 GB in float32: half the layers fit one GPU of 140 GB
step --hidden 4096 --layers 16 --pairs 2 --out benchmarks/gpu_4b.md

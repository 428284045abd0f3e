#!/usr/bin/env bash
# Training steps against TRL, decoding, scoring and the fast path's results on one CUDA GPU of 80 GB, in under 10 minutes:
# $OUT/gpu.md (OUT: benchmarks). SIZE=tiny runs every part once on a CPU, to see that it works.
set -euo pipefail
cd "$(dirname "$0")/.."
tiny=()
[ "${SIZE:-}" != tiny ] || tiny=(--tiny)
PYTHONPATH=on_policy_data_gen python benchmarks/gpu.py --out "${OUT:-benchmarks}/gpu.md" "${tiny[@]}"

#!/usr/bin/env bash
# Trains a small chat model and then SimPO on it, with the scripts that a GPU node runs. Stages that are whole are
# skipped, stages that were stopped resume.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
SEED=${SEED:-0}
out=outputs/quickstart
# one thread each: a model this small gains nothing from more, and loses much on a busy machine
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu PYTHONWARNINGS=ignore::FutureWarning

finished() { [ -f "$out/models/$1/trainer_state.json" ]; }  # the last file that training writes

[ -f "$out/models/untrained/config.json" ] || python "$here/make_data.py" --output "$out" --seed "$SEED"
finished sft || python scripts/run_sft.py "$here/sft.yaml" --output_dir="$out/models/sft" \
    --model_name_or_path="$out/models/untrained" --dataset_mixer="{\"$out/data/sft\": 1.0}"
finished simpo || accelerate launch --config_file accelerate_configs/deepspeed_zero3_cpu.yaml \
    scripts/run_simpo.py "$here/simpo.yaml" --output_dir="$out/models/simpo" \
    --model_name_or_path="$out/models/sft" --dataset_mixer="{\"$here/pairs\": 1.0}"

echo
echo "model:   $out/models/simpo"
echo "metrics: $out/models/simpo/all_results.json (every step: trainer_state.json)"
echo "ask it:  .venv/bin/python generate.py $out/models/simpo 'What is the opposite of hot?'"

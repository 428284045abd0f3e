#!/usr/bin/env bash
# From prompts to preference pairs: decode, post-process and annotate the train and the test prompts.
#
#     on_policy_data_gen/run_pipeline.sh MODEL DATA OUT
#     SEEDS="1 2 3" REWARD_MODEL=llm-blender/PairRM-hf run_pipeline.sh google/gemma-2-9b-it prompts.jsonl out
#
# MODEL: hub name or folder. DATA: hub name or folder with the two splits, or one file of prompts (then a part of the
# pairs is the test split). OUT receives train/ and test/ (responses; see decode.py and post_process.py) and
# annotated/ (scores and pairs; see reward_model_annotate.py). Run it again after a stop: it continues. More settings
# from the environment: pipeline.sh, and
#     EXTRA_RESPONSES   off-policy responses to score as well: a file, or DATA:SPLIT+SPLIT
#     TRAIN             simpo or wpo: which training command is printed
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: $0 MODEL DATA OUT" >&2
    exit 2
fi
model=$1 data=$2 out=$3
# shellcheck source=pipeline.sh
. "$(dirname "${BASH_SOURCE[0]}")/pipeline.sh"
: "${TRAIN:=simpo}"
[ -z "${EXTRA_RESPONSES:-}" ] || extra_args=(--extra_responses "$EXTRA_RESPONSES")

make_pairs "$model" "$data" "$out"

case "$TRAIN $(basename "$model" | tr '[:upper:]' '[:lower:]')" in
wpo*mistral* | wpo*zephyr*) config=mistral ;;
wpo*) config=llama3_instruct ;;
*gemma*) config=gemma-2-9b-it-simpo ;;
*mistral*) config=mistral-7b-instruct-simpo ;;
*) config=llama-3-8b-instruct-simpo-v2 ;;
esac
datasets=$(cd "$out/annotated" && pwd)/datasets
[ -d "$model" ] && model=$(cd "$model" && pwd)
echo
echo "To train on the result:"
printf "accelerate launch %q %q --model_name_or_path=%q --dataset_mixer=%q --dataset_splits=train,test --output_dir=%q\n" \
    "$repository/scripts/run_$TRAIN.py" "$repository/training_configs/$config.yaml" "$model" "{\"$datasets\": 1.0}" \
    "$(dirname "$datasets")/$TRAIN"

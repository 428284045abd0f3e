#!/usr/bin/env bash
# From prompts to preference pairs: decode, post-process and annotate the train and the test prompts.
#
#     on_policy_data_gen/run_pipeline.sh MODEL DATA OUT
#     SEEDS="1 2 3" REWARD_MODEL=llm-blender/PairRM-hf run_pipeline.sh google/gemma-2-9b-it prompts.jsonl out
#
# MODEL: hub name or folder. DATA: hub name or folder with the two splits, or one file of prompts (then a part of the
# pairs is the test split). OUT receives train/ and test/ (responses; see decode.py and post_process.py) and
# annotated/ (scores and pairs; see reward_model_annotate.py). Run it again after a stop: it continues.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: $0 MODEL DATA OUT" >&2
    exit 2
fi
model=$1 data=$2 out=$3
: "${SEEDS:=13 21 42 79 100}"
: "${REWARD_MODEL:=RLHFlow/ArmoRM-Llama3-8B-v0.1}"
: "${TRAIN_SPLIT:=train_prefs}"
: "${TEST_SPLIT:=test_prefs}"
: "${DECODE_ARGS:=}"       # more options of decode.py, such as "--max_tokens 2048 --data_parallel_size 8"
: "${POST_PROCESS_ARGS:=}" # ... of post_process.py
: "${ANNOTATE_ARGS:=}"     # ... of reward_model_annotate.py
: "${ANNOTATE:=python}"    # how to start it, such as "accelerate launch --num_processes 8"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")

# shellcheck source=../scripts/children.sh
. "$repository/scripts/children.sh"

decode() { # decode FOLDER SPLIT [OPTION...]: the responses to one split's prompts
    # shellcheck disable=SC2086  # lists of words on purpose
    run python "$here/decode.py" --model "$model" --data_dir "$data" --split "$2" --seed $SEEDS --output_dir "$1" \
        $DECODE_ARGS "${@:3}"
}

generate() { # generate FOLDER SPLIT: the responses, joined by prompt
    decode "$1" "$2"
    # shellcheck disable=SC2086
    run python "$here/post_process.py" --generation_file_dir "$1" $POST_PROCESS_ARGS
}

test_args=()
if [ -e "$data" ] && [ ! -d "$data" ]; then
    generate "$out/train" "$TRAIN_SPLIT"
else
    # what is wrong with the test prompts shows now, not after hours of decoding
    decode "$out/test" "$TEST_SPLIT" --dry_run
    generate "$out/train" "$TRAIN_SPLIT"
    generate "$out/test" "$TEST_SPLIT"
    test_args=(--test_generation_file "$out/test/all_outputs.json")
fi
# shellcheck disable=SC2086
run $ANNOTATE "$here/reward_model_annotate.py" --generation_file "$out/train/all_outputs.json" "${test_args[@]}" \
    --reward_model "$REWARD_MODEL" --output_dir "$out/annotated" $ANNOTATE_ARGS

case "$(basename "$model" | tr '[:upper:]' '[:lower:]')" in
*gemma*) config=gemma-2-9b-it-simpo ;;
*mistral*) config=mistral-7b-instruct-simpo ;;
*) config=llama-3-8b-instruct-simpo-v2 ;;
esac
datasets=$(cd "$out/annotated" && pwd)/datasets
[ -d "$model" ] && model=$(cd "$model" && pwd)
echo
echo "To train on the result:"
printf "accelerate launch %q %q --model_name_or_path=%q --dataset_mixer=%q --dataset_splits=train,test --output_dir=%q\n" \
    "$repository/scripts/run_simpo.py" "$repository/training_configs/$config.yaml" "$model" "{\"$datasets\": 1.0}" \
    "$(dirname "$datasets")/simpo"

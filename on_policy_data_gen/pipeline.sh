# What run_pipeline.sh and run_rounds.sh share: settings from the environment, and one function for each step.
# shellcheck shell=bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")
: "${SEEDS:=13 21 42 79 100}"
: "${REWARD_MODEL:=RLHFlow/ArmoRM-Llama3-8B-v0.1}"
: "${TRAIN_SPLIT:=train_prefs}"
: "${TEST_SPLIT:=test_prefs}"
: "${DECODE_ARGS:=}"       # more options of decode.py, such as "--max_tokens 2048 --data_parallel_size 8"
: "${POST_PROCESS_ARGS:=}" # ... of post_process.py
: "${ANNOTATE_ARGS:=}"     # ... of reward_model_annotate.py
: "${ANNOTATE:=python}"    # how to start it, such as "accelerate launch --num_processes 8"
extra_args=()              # ... of reward_model_annotate.py where it makes pairs, each a word

# shellcheck source=../scripts/children.sh
. "$repository/scripts/children.sh"

decode() { # decode MODEL DATA FOLDER SPLIT [OPTION...]: the responses to one split's prompts
    # shellcheck disable=SC2086  # lists of words on purpose
    run python "$here/decode.py" --model "$1" --data_dir "$2" --split "$4" --seed $SEEDS --output_dir "$3" \
        $DECODE_ARGS "${@:5}"
}

generate() { # generate MODEL DATA FOLDER SPLIT [OPTION...]: the responses, joined by prompt
    decode "$@"
    # shellcheck disable=SC2086
    run python "$here/post_process.py" --generation_file_dir "$3" $POST_PROCESS_ARGS
}

annotate() { # annotate GENERATION_FILE FOLDER [OPTION...]: scores and pairs
    # shellcheck disable=SC2086
    run $ANNOTATE "$here/reward_model_annotate.py" --generation_file "$1" --reward_model "$REWARD_MODEL" \
        --output_dir "$2" $ANNOTATE_ARGS "${@:3}"
}

make_pairs() { # make_pairs MODEL DATA OUT [OPTION...]: all steps; the options are decode's, for the train prompts
    local model=$1 data=$2 out=$3 test_args=()
    if [ -e "$data" ] && [ ! -d "$data" ]; then
        generate "$model" "$data" "$out/train" "$TRAIN_SPLIT" "${@:4}"
    else
        # what is wrong with the test prompts shows now, not after hours of decoding
        decode "$model" "$data" "$out/test" "$TEST_SPLIT" --dry_run
        generate "$model" "$data" "$out/train" "$TRAIN_SPLIT" "${@:4}"
        generate "$model" "$data" "$out/test" "$TEST_SPLIT"
        test_args=(--test_generation_file "$out/test/all_outputs.json")
    fi
    annotate "$out/train/all_outputs.json" "$out/annotated" "${test_args[@]}" "${extra_args[@]}"
}

#!/usr/bin/env bash
# On-policy training in rounds: each decodes with the newest model, scores, pairs, and trains on from that model.
#
#     CONFIG=training_configs/llama-3-8b-instruct-simpo-v2.yaml on_policy_data_gen/run_rounds.sh MODEL DATA OUT
#
# MODEL, DATA, and settings from the environment: as for run_pipeline.sh (see pipeline.sh); and
#     CONFIG       the training's YAML file; its objective: NAME there, else in TRAIN_ARGS, or SimPO's settings
#     ROUNDS       how many (3)
#     PROMPTS      split: each round has prompts of its own, by a hash of the prompt; all: each has all of them
#     SEEDS        of the first round; the next ones add 1000, 2000, ...
#     REWARD       the reward model
#     REFERENCE    previous: an objective's reference model is the model that the round starts from; start: it is MODEL
#     TRAIN        how to start training ("accelerate launch --config_file .../deepspeed_zero3.yaml")
#     TRAIN_ARGS   more options of training, such as "--learning_rate=5e-7"
#     HELD_OUT     prompts to measure with, which no round trains on: hub name, folder or file. By default the test
#                  split of DATA; of one file, the part of its prompts that HELD_OUT_FRACTION says (0.02)
#
# OUT receives
#     rounds.json held_out.jsonl training.yaml    the settings, of which other ones are refused
#     held_out/0/ 1/ ...                   answers of MODEL and of each round's model to the held-out prompts, greedy
#     held_out/all_outputs_rm.json         the scores of these, in the models' order
#     round_1/{train,test,annotated}/      as of run_pipeline.sh
#     round_1/model/ merged/ done          the trained model; with LoRA, merged into its base; the round is finished
#     report.html                          all rounds on one page
#
# Run it again after a stop, at any point: it continues.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: CONFIG=FILE $0 MODEL DATA OUT" >&2
    exit 2
fi
model=$1 data=$2 out=$3
[ -z "${REWARD:-}" ] || REWARD_MODEL=$REWARD
# shellcheck source=pipeline.sh
. "$(dirname "${BASH_SOURCE[0]}")/pipeline.sh"
: "${CONFIG:=}"
: "${ROUNDS:=3}"
: "${PROMPTS:=split}"
: "${REFERENCE:=previous}"
: "${TRAIN_ARGS:=}"
: "${HELD_OUT:=}"
: "${HELD_OUT_FRACTION:=0.02}"
launch=(accelerate launch --config_file "$repository/accelerate_configs/deepspeed_zero3.yaml")
[ -z "${TRAIN:-}" ] || read -ra launch <<< "$TRAIN"
export SEEDS REWARD_MODEL TRAIN_SPLIT TEST_SPLIT DECODE_ARGS POST_PROCESS_ARGS ANNOTATE_ARGS CONFIG ROUNDS PROMPTS
export REFERENCE TRAIN_ARGS HELD_OUT HELD_OUT_FRACTION

newest() { # newest ROUND: the model that a round ended with, or the first
    local folder=$out/round_$1
    if [ "$1" = 0 ]; then
        echo "$model"
    elif [ -d "$folder/merged" ]; then
        echo "$folder/merged"
    else
        echo "$folder/model"
    fi
}

measure() { # measure ROUND: its model's answers to the held-out prompts, and the scores of all models' so far
    run python "$here/decode.py" "$out/held_out/decode.yaml" --model "$(newest "$1")" --output_dir "$out/held_out/$1"
    if [ "$1" != 0 ]; then
        run python "$here/held_out.py" "$out/held_out" "$1"
        # shellcheck disable=SC2086  # a list of words
        run $ANNOTATE "$here/reward_model_annotate.py" "$out/held_out/annotate.yaml" --reward_model "$REWARD_MODEL" \
            --generation_file "$out/held_out/all_outputs.json" --output_dir "$out/held_out"
    fi
}

one_round() { # one_round ROUND: pairs, training, measuring
    local folder=$out/round_$1 start seed seeds="" part=()
    start=$(newest $(($1 - 1)))
    for seed in ${SEEDS//,/ }; do seeds+=" $((10#$seed + 1000 * ($1 - 1)))"; done
    [ "$PROMPTS" = all ] || part=(--part "$1/$ROUNDS")
    SEEDS=$seeds make_pairs "$start" "$data" "$folder" --exclude "$out/held_out.jsonl" "${part[@]}"
    run "${launch[@]}" "$repository/scripts/run_preference.py" "$out/training.yaml" --model_name_or_path="$start" \
        --dataset_mixer="{\"$folder/annotated/datasets\": 1.0}" --dataset_splits=train,test --output_dir="$folder/model"
    if [ -e "$folder/model/adapter_config.json" ]; then
        run python "$repository/scripts/merge.py" "$folder/model" "$folder/merged"
    fi
    measure "$1"
    touch "$folder/done"
}

run python "$here/rounds.py" "$model" "$data" "$out"
[ -e "$out/round_1/done" ] || measure 0
for ((round = 1; round <= ROUNDS; round++)); do
    [ -e "$out/round_$round/done" ] || one_round "$round"
done
run python "$repository/scripts/report.py" "$out" --output "$out/report.html"

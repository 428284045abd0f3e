# What run.sh and compare.sh share: where things are, and one function for each stage.
# shellcheck shell=bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SEED=${SEED:-0} ROUNDS=${ROUNDS:-1} PROMPTS=${PROMPTS:-split} SCALE=${SCALE:-1} out=${OUT:-outputs/quickstart}
data=$out/data models=$out/models
# one thread for each process: a model this small gains little from more, and loses much when they wait for a core
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu PYTHONWARNINGS=ignore::FutureWarning TOKENIZERS_PARALLELISM=false
export TORCH_CPP_LOG_LEVEL=ERROR

. "$here/../stages.sh"

make_data() { # the tasks, the conversations and the untrained model
    run python "$here/make_data.py" --output "$data" --seed "$SEED" --scale "$SCALE"
    made=("$data")
}

train() { # train SCRIPT CONFIG START DATA NAME [OPTION...]: models/NAME from the model START
    run python "scripts/$1" "$here/$2.yaml" --output_dir="$models/$5" --model_name_or_path="$3" \
        --dataset_mixer="{\"$4\": 1.0}" --seed="$SEED" "${@:6}"
    made=("$models/$5")
}

decode_args="--dtype float32 --max_model_len 256 --max_tokens 64"

answer() { # answer MODEL NAME: greedy answers to the held-out prompts, graded
    # shellcheck disable=SC2086  # a list of words
    run python on_policy_data_gen/decode.py --model "$models/$1" --data_dir "$data/held_out.jsonl" --temperature 0 \
        --seed 0 --output_dir "$out/greedy/$1" $decode_args
    grade "$out/greedy/$1" "$2"
    made=("$out/answers_$2.json")
}

grade() { # grade FOLDER NAME: decode's answers to the held-out prompts
    run python "$here/grade.py" "$data/held_out.jsonl" "$1/output_0.json" --output "$out/answers_$2.json"
}

rounds() { # on_policy_data_gen/run_rounds.sh from the SFT model, and every round's answers graded
    CONFIG=$here/simpo.yaml TRAIN="accelerate launch $prefer_args" TRAIN_ARGS="--seed=$SEED" REWARD=$models/reward \
        HELD_OUT=$data/held_out.jsonl SEEDS="${seeds[*]}" DECODE_ARGS=$decode_args ROUNDS=$ROUNDS PROMPTS=$PROMPTS \
        ANNOTATE_ARGS="--torch_dtype float32 --test_fraction 0.05" \
        run bash on_policy_data_gen/run_rounds.sh "$models/sft" "$data/prompts.jsonl" "$out"
    for ((round = 0; round <= ROUNDS; round++)); do
        case $round in 0) name=before ;; "$ROUNDS") name=after ;; *) name=round_$round ;; esac
        grade "$out/held_out/$round" "$name"
    done
    made=("$out"/round_* "$out"/held_out "$out"/answers_*)
}

# float32: matrix products in bf16 are slow under ZeRO-3 on a CPU
prefer_args="--config_file accelerate_configs/deepspeed_zero3_cpu.yaml --mixed_precision no"

prefer() { # prefer SCRIPT CONFIG START DATA NAME [OPTION...]: models/NAME from START and pairs, ZeRO-3 on two processes
    # shellcheck disable=SC2086  # a list of words
    run accelerate launch $prefer_args "scripts/$1" "$here/$2.yaml" --output_dir="$models/$5" --model_name_or_path="$3" \
        --dataset_mixer="{\"$4/datasets\": 1.0}" --seed="$SEED" "${@:6}"
    made=("$models/$5")
}

build_deepspeed() {
    run python -c "from simpo.train.launcher import remove_stale_build_locks; remove_stale_build_locks()
from deepspeed.comm.torch import build_shm_op; build_shm_op()"
}

await_reward() { # await_reward PROCESS
    echo "its output: $out/reward.log"
    wait "$1" || { tail -n 5 "$out/reward.log" >&2; exit 1; }
}

seeds=()
for seed in 13 21 42 79 100; do seeds+=($((seed + 1000 * SEED))); done

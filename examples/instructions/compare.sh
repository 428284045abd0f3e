#!/usr/bin/env bash
# What else could the same samples buy? After run.sh with the same SEED and OUT: DPO on the same pairs, and supervised
# fine-tuning on their chosen answers; one setting each and none tuned. Prints the table of the README. Stages that are
# whole are skipped: run it again after a stop.
#
#     for s in 4 5 6; do
#         SEED=$s OUT=outputs/instructions_$s bash examples/instructions/run.sh
#         SEED=$s OUT=outputs/instructions_$s bash examples/instructions/compare.sh
#     done
#     python examples/instructions/table.py outputs/instructions_4 outputs/instructions_5 outputs/instructions_6
set -euo pipefail
. "$(dirname "$0")/stages.sh"

chosen() {
    run python "$here/chosen.py" "$out/annotated/all_outputs_bin.json" "$data/chosen/train.jsonl"
    made=("$data/chosen")
}

stage chosen chosen
stage sft train sft run_sft.py sft.yaml "$data/chosen"
stage answers_sft answer sft sft
stage dpo train dpo run_preference.py preference.yaml "$out/annotated/datasets" --objective=dpo --beta=0.1
stage answers_dpo answer dpo dpo
for name in before:start after:simpo dpo:dpo sft:sft; do
    stage "perplexity_${name%:*}" perplexity "${name#*:}" "${name%:*}"
done
python "$here/table.py" "$out"

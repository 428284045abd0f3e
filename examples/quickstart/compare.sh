#!/usr/bin/env bash
# What else could the same compute buy? After run.sh with the same SEED and OUT: more supervised fine-tuning on right
# answers to the same questions, and DPO on the same pairs. Prints each model's accuracy.
#
#     for s in 1 2 3; do
#         SEED=$s OUT=outputs/seed_$s bash examples/quickstart/run.sh
#         SEED=$s OUT=outputs/seed_$s bash examples/quickstart/compare.sh
#     done
#     python examples/quickstart/grade.py --table outputs/seed_1 outputs/seed_2 outputs/seed_3
set -euo pipefail
. "$(dirname "$0")/stages.sh"

# SimPO runs 2 epochs over pairs, which are two sequences each: 4 epochs over single answers
stage more_sft train run_sft.py sft "$models/sft" "$data/more_sft" more_sft --num_train_epochs=4 --learning_rate=1e-4
stage answers_more_sft answer more_sft more_sft
stage dpo prefer run_wpo.py dpo "$models/sft" "$out/onpolicy" dpo
stage answers_dpo answer dpo dpo
python "$here/grade.py" --table "$out"

#!/usr/bin/env bash
# What else could the same pairs and the same compute buy? After run.sh with the same SEED and OUT: every other
# objective on the same pairs, one setting each and none tuned, and more supervised fine-tuning on right answers to the
# same questions. Prints each model's accuracy. Stages that are whole are skipped: run it again after a stop.
#
#     for s in 1 2 3; do
#         SEED=$s OUT=outputs/seed_$s bash examples/quickstart/run.sh
#         SEED=$s OUT=outputs/seed_$s bash examples/quickstart/compare.sh
#     done
#     python examples/quickstart/grade.py --table outputs/seed_1 outputs/seed_2 outputs/seed_3
#
# OBJECTIVES="dpo ipo" trains with these only.
set -euo pipefail
. "$(dirname "$0")/stages.sh"

all="wpo dpo ipo cpo kto orpo rdpo rrhf slic ln_dpo apo_zero apo_down simper alphapo dpop"
# where the default is far from what training_configs/ starts with
declare -A settings=([ipo]=--tau=0.5 [orpo]=--beta=0.5 [alphapo]=--gamma_beta_ratio=0.5)
for objective in ${OBJECTIVES:-$all}; do
    stage "$objective" prefer run_preference.py preference "$models/sft" "$out/round_1/annotated" "$objective" \
        --objective="$objective" ${settings[$objective]:+"${settings[$objective]}"}
    stage "answers_$objective" answer "$objective" "$objective"
done
# SimPO runs 2 epochs over pairs, which are two sequences each: 4 epochs over single answers
stage more_sft train run_sft.py sft "$models/sft" "$data/more_sft" more_sft --num_train_epochs=4 --learning_rate=1e-4
stage answers_more_sft answer more_sft more_sft
python "$here/grade.py" --table "$out"

#!/usr/bin/env bash
# The whole loop of on-policy preference optimization on a small model, with the scripts that a GPU node runs:
# base model -> supervised fine-tuning and a reward model -> answers under five seeds -> scores and pairs -> SimPO.
#
#     bash examples/quickstart/run.sh              SEED=1 ROUNDS=2 OUT=outputs/another bash examples/quickstart/run.sh
#
# SEED draws other tasks, weights and samples; ROUNDS repeats the part from sampling on, each round with its part of the
# questions (PROMPTS=all: with all of them); SCALE=0.05 is a quick try on little data. Stages that are whole are skipped
# and stages that were stopped continue, so run it again after a stop.
set -euo pipefail
. "$(dirname "$0")/stages.sh"

stage data make_data
# DeepSpeed compiles a part of itself once for each environment: meanwhile, on the other core.
[ -e "$out/stages/base" ] || background build_deepspeed > "$out/build.log" 2>&1
stage base train run_sft.py base "$data/untrained" "$data/base" base
wait # were it stopped, SimPO's start would do it

# The reward model is trained beside the policy: each keeps one core busy.
background stage reward train run_reward.py reward "$models/base" "$data/reward" reward >> "$out/reward.log" 2>&1
reward=$!
stage sft train run_sft.py sft "$models/base" "$data/sft" sft
stage reward_wait await_reward $reward
wait $reward # again, for when it was waited for in an earlier run, and had to be trained anew in this one
stage "rounds_${ROUNDS}_$PROMPTS" rounds # with other values, rounds.json refuses
policy=$out/round_$ROUNDS/model

python "$here/grade.py" --summary "$out"
python scripts/report.py "$out" --output "$out/report.html"
echo
echo "model:   $policy"
echo "report:  $out/report.html"
echo "ask it:  .venv/bin/python generate.py $policy 'What is the opposite of hot?'"
tail -n 1 "$out/summary.txt"

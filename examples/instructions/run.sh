#!/usr/bin/env bash
# A real chat model learns to keep to instructions, on a laptop: SmolLM2-135M-Instruct answers questions that come with a
# constraint, a program scores its answers, and SimPO trains on the pairs.
#
#     bash examples/instructions/run.sh            SEED=1 OUT=outputs/another bash examples/instructions/run.sh
#
# SEED draws other questions, constraints and samples; DOWNLOADS=folder has the wheel, or receives it; SCALE=0.05 is a
# quick try on little data. Stages that are whole are skipped and stages that were stopped continue, so run it again
# after a stop.
set -euo pipefail
. "$(dirname "$0")/stages.sh"

stage convert convert
stage data draw
stage sample sample
stage score score
stage before answer start before
stage simpo train simpo run_simpo.py simpo.yaml "$out/annotated/datasets"
stage after answer simpo after

run python "$here/grade.py" --summary "$out"
run python scripts/report.py "$out" --output "$out/report.html"
echo "report:  $out/report.html"
echo "ask it:  .venv/bin/python generate.py $models/simpo 'What is a comet? Answer in one sentence.'"

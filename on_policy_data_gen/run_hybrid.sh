#!/usr/bin/env bash
# WPO's hybrid data: the model's own answers beside the data's, all rated by a judge, and pairs by the rules of wpo_v2.
#
#     JUDGE=gpt-4-turbo on_policy_data_gen/run_hybrid.sh MODEL DATA OUT
#     JUDGE=Qwen/Qwen2.5-72B-Instruct BASE_URL=http://localhost:8000/v1 run_hybrid.sh MODEL DATA OUT
#
# DATA holds preference pairs (prompt, chosen, rejected): its prompts are answered, and its answers are the off-policy
# ones. OPENAI_API_KEY holds the judge's key. All else is as in run_pipeline.sh, which does the work. Prints the command
# that trains with WPO.
set -euo pipefail

if [ $# -ne 3 ] || [ -z "${JUDGE:-}" ]; then
    echo "usage: JUDGE=NAME [BASE_URL=http://...] $0 MODEL DATA OUT" >&2
    exit 2
fi
if [ -z "${OPENAI_API_KEY:-}" ]; then
    echo "error: OPENAI_API_KEY is not set: the judge's key, or any word for a local judge that wants none" >&2
    exit 2
fi
data=$2
[ -e "$data" ] && [ ! -d "$data" ] || data="$data:${TRAIN_SPLIT:-train_prefs}+${TEST_SPLIT:-test_prefs}"
export TRAIN=wpo REWARD_MODEL="judge:$JUDGE" EXTRA_RESPONSES="$data"
export ANNOTATE_ARGS="--pair_selection wpo_v2 ${BASE_URL:+--base_url $BASE_URL} ${ANNOTATE_ARGS:-}"
exec "$(dirname "${BASH_SOURCE[0]}")/run_pipeline.sh" "$@"

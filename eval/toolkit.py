"""What the data scripts and the evaluation share (journals, locks, whole-file writes, the vLLM engine), by one door."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "on_policy_data_gen"))

from run_folder import JOURNALS, Journal, check_settings, lock_folder, weights_digest, write_json
from vllm_engine import context_length, engine_settings, start_engine

__all__ = [
    "JOURNALS",
    "Journal",
    "check_settings",
    "context_length",
    "engine_settings",
    "lock_folder",
    "start_engine",
    "weights_digest",
    "write_json",
]

"""Several nodes, as two processes of one machine with working folders of their own."""

import json
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, losses, make_pairs, write_jsonl
from datasets import Dataset, concatenate_datasets

from simpo.console import UserError
from simpo.train.checkpoints import missing_part
from simpo.train.launcher import check_meeting_point
from simpo.train.same_data import digest_of_rows

TRAIN = str(ROOT / "scripts" / "run_simpo.py")
ANNOTATE = str(ROOT / "on_policy_data_gen" / "reward_model_annotate.py")


def two_nodes(folder: Path, *words: Any, **options: Any) -> list[tuple[int, str, str]]:
    """Run a command on two nodes (see start_nodes); returns status, output and errors of each."""
    ends = []
    for process in start_nodes(folder, *words, **options):
        out, err = process.communicate(timeout=1800)
        ends.append((process.returncode, out, err))
    return ends


def start_nodes(
    folder: Path, environment: Mapping[str, str], *command: str, second: tuple[str, ...] = ()
) -> list[subprocess.Popen]:
    """Start a command on "nodes" 0 and 1 (there with more arguments)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    started = []
    for rank in (0, 1):
        place = folder / f"node{rank}"
        place.mkdir(parents=True, exist_ok=True)
        env = os.environ | common | environment | {"RANK": str(rank), "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        more = second if rank else ()
        started.append(subprocess.Popen(["python", *command, *more], cwd=place, env=env, **pipes))
    return started


def refusal(ends: list[tuple[int, str, str]]) -> str:
    """What the first of two refused processes said, once; the second says the same, with its number."""
    lines = [[line for line in err.splitlines() if line.startswith("error: ")] for _, _, err in ends]
    assert [status for status, _, _ in ends] == [2, 2], ends
    assert [len(found) for found in lines] == [1, 1] and "Traceback" not in ends[0][2] + ends[1][2]
    message = lines[0][0].removeprefix("error: ")
    assert lines[1][0] == f"error: process 1: {message}"
    return message


@pytest.mark.slow
def test_folders_that_nodes_do_not_share_are_refused(config, tmp_path, warm):
    """... by training and by scoring: both wait a while for the file of the other."""
    rows = [{"prompt": f"p{i}", "all_generated_responses": ["a", "b"], "all_rm_scores": [i, 0.5]} for i in range(60)]
    (tmp_path / "generated.json").write_text(json.dumps(rows))
    score = ["--generation_file", str(tmp_path / "generated.json"), "--reward_model", "given", "--output_dir", "out"]
    commands = {"train": [TRAIN, config(output_dir="out")], "score": [ANNOTATE, *score]}
    for name, command in commands.items():
        message = refusal(two_nodes(tmp_path / name, warm, str(ROOT / "tests" / "impatient.py"), *command))
        place = tmp_path / name / "node0" / "out"
        assert message.startswith(
            f"output_dir: what process 0 writes to {place}, process 1 cannot see; it must be one fold"
        )
        assert not place.exists() and not (tmp_path / name / "node1" / "out").exists()


@pytest.mark.slow
def test_other_settings_on_a_node_are_refused(config, tmp_path, warm):
    message = refusal(two_nodes(tmp_path, warm, TRAIN, config(), second=("--learning_rate=2e-3",)))
    assert message == "process 1 was not started as process 0 was (learning_rate: 0.001 and 0.002)"


@pytest.mark.slow
def test_other_rows_on_a_node_are_refused(config, tmp_path, warm):
    for rank in (0, 1):
        write_jsonl(tmp_path / f"node{rank}" / "pairs" / "train.jsonl", make_pairs(16, offset=rank))
    message = refusal(two_nodes(tmp_path, warm, TRAIN, config(dataset_mixer={"pairs": 1.0}, dataset_splits=["train"])))
    assert message.startswith("dataset_mixer: process 1 has other training rows than process 0")


@pytest.mark.slow
def test_nodes_that_share_their_folder_train_and_resume(config, tmp_path, warm):
    path = config(save_strategy="steps", save_steps=2)
    assert [status for status, _, _ in two_nodes(tmp_path, warm, TRAIN, path)] == [0, 0]
    whole = losses(tmp_path / "out")
    for name in ("digests.json", "trainer_state.json", "checkpoint-4/digests.json"):
        (tmp_path / "out" / name).unlink()  # as if stopped while saving the last checkpoint
    ends = two_nodes(tmp_path, warm, TRAIN, path)
    assert [status for status, _, _ in ends] == [0, 0] and "resuming from" in ends[0][1]
    assert [step["loss"] for step in losses(tmp_path / "out")] == [step["loss"] for step in whole]
    assert not list((tmp_path / "out").glob(".seen-by-all-*"))


# ---- in one process ----------------------------------------------------------------------------------------------


def test_parts_of_a_checkpoint(tmp_path):
    part = "global_step4/bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    (tmp_path / "global_step4").mkdir()
    assert missing_part(tmp_path, 1, 2) is None  # nothing of it is sharded
    for rank in range(2):
        (tmp_path / part.format(rank)).touch()
    assert [missing_part(tmp_path, rank, 2) for rank in range(2)] == [None, None]
    assert "saved by 2 processes, and these are 1" in missing_part(tmp_path, 0, 1)
    assert "no part for process 2" in missing_part(tmp_path, 2, 3)
    (tmp_path / part.format(1)).unlink()
    assert "no part for process 1" in missing_part(tmp_path, 1, 2)
    assert "process 3 does not see" in missing_part(tmp_path / "nowhere", 3, 4)


def test_processes_without_a_port_to_meet_at(monkeypatch, capsys):
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "0")
    check_meeting_point()  # one process
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert not capsys.readouterr().err
    check_meeting_point()  # what accelerate launch --cpu over two machines starts on each
    assert "this process is alone" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="port 0"):
        check_meeting_point()
    monkeypatch.setenv("MASTER_PORT", "29500")
    check_meeting_point()
    assert not capsys.readouterr().err


def test_a_digest_is_that_of_the_values():
    rows = [{"ids": list(range(i % 7)), "labels": [-100] * (i % 5), "text": "x" * (i % 4)} for i in range(2500)]
    data = Dataset.from_list(rows)
    digest = digest_of_rows(data)
    halves = concatenate_datasets([data.select(range(900)), data.select(range(900, 2500))])
    again = concatenate_datasets([data.select(range(50)), data]).select(range(50, 2550))
    for same in (halves, again, data.select_columns(["text", "labels", "ids"]), data.with_format("torch")):
        assert digest_of_rows(same) == digest
    reversed_rows = data.select(np.arange(2499, -1, -1))
    assert digest_of_rows(reversed_rows) == digest_of_rows(Dataset.from_list(rows[::-1]))
    for other in (reversed_rows, data.select(range(2499)), data.map(lambda row: {"ids": row["ids"] + [1]})):
        assert digest_of_rows(other) != digest
    moved = [[[1, 2], [3]], [[1], [2, 3]]]  # the same numbers in other rows
    assert len({digest_of_rows(Dataset.from_dict({"ids": ids})) for ids in moved}) == 2

"""on_policy_data_gen/rounds.py and run_rounds.sh: what they refuse before anything is decoded, and what they write."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_jsonl
from crashes import contents

import held_out
import rounds
from decode import DecodeArguments
from reward_model_annotate import AnnotateArguments
from simpo.config import H4ArgumentParser
from simpo.config.reading import read_yaml
from tiny_models import tiny_llama

ROUNDS = str(ROOT / "on_policy_data_gen" / "run_rounds.sh")
DEFAULTS = {
    "SEEDS": "13 21", "REWARD_MODEL": "given", "TRAIN_SPLIT": "train_prefs", "TEST_SPLIT": "test_prefs",
    "DECODE_ARGS": "", "POST_PROCESS_ARGS": "", "ANNOTATE_ARGS": "", "ROUNDS": "3", "PROMPTS": "split",
    "REFERENCE": "previous", "TRAIN_ARGS": "", "HELD_OUT": "", "HELD_OUT_FRACTION": "0.02",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model, prompts and a training configuration."""
    folder = tmp_path_factory.mktemp("rounds")
    tiny_llama(folder / "model")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"What is {i} plus {i % 7}?", "key": i} for i in range(40)])
    write_jsonl(folder / "few.jsonl", [{"prompt": f"What is {i}?"} for i in range(3)])
    (folder / "folder").mkdir()
    (folder / "simpo.yaml").write_text("beta: 2.0\ngamma_beta_ratio: 0.5\nlearning_rate: 1e-3\n")
    (folder / "dpo.yaml").write_text("use_wpo_weighting: false\nbeta: 0.01\n")
    return folder


@pytest.fixture
def check(monkeypatch, world, tmp_path):
    """Run rounds.py with changes to the environment, and perhaps to what comes first on its command line."""

    def prepare(data: str = "prompts.jsonl", model: str = "model", **changes: str) -> list[str]:
        for name, value in (DEFAULTS | {"CONFIG": str(world / "simpo.yaml")} | changes).items():
            monkeypatch.setenv(name, value)
        return [str(world / model), str(world / data), str(tmp_path / "out")]

    return prepare


def run(monkeypatch, argv: list[str]) -> Path:
    monkeypatch.setattr(sys, "argv", ["rounds.py", *argv])
    rounds.main()
    return Path(argv[2])


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"CONFIG": ""}, ["CONFIG: name the training's YAML file"]),
        ({"CONFIG": "none.yaml"}, ["none.yaml: no such configuration file"]),
        ({"CONFIG": "dpo.yaml"}, ["names no objective", "--objective=NAME"]),
        ({"TRAIN_ARGS": "--objective=nonsense"}, ["nonsense"]),
        ({"TRAIN_ARGS": "beta=3"}, ["TRAIN_ARGS", "beta=3"]),
        ({"TRAIN_ARGS": "--learning_rat=3"}, ["learning_rat", "did you mean learning_rate"]),
        ({"TRAIN_ARGS": "--beta=much"}, ["beta", "much"]),
        ({"TRAIN_ARGS": "--objective=dpo"}, ["gamma_beta_ratio", "not of dpo"]),
        ({"PROMPTS": "some"}, ["PROMPTS: 'some' is neither split nor all"]),
        ({"REFERENCE": "first"}, ["REFERENCE: 'first' is neither previous nor start"]),
        ({"ROUNDS": "0"}, ["ROUNDS: '0'"]),
        ({"ROUNDS": "two"}, ["ROUNDS: 'two'"]),
        ({"ROUNDS": "1.5"}, ["ROUNDS: '1.5'"]),
        ({"ROUNDS": "50"}, ["ROUNDS=50: round", "of the 39 prompts", "fewer rounds, more prompts, or PROMPTS=all"]),
        ({"data": "few.jsonl", "ROUNDS": "2"}, ["ROUNDS=2: round"]),
        (
            {"data": "few.jsonl", "ROUNDS": "9", "PROMPTS": "all", "HELD_OUT_FRACTION": "0.9"},
            ["has 0 of the 0 prompts"],
        ),
        ({"data": "none.jsonl"}, ["none.jsonl"]),
        ({"model": "none"}, ["MODEL: there is no folder"]),
        ({"SEEDS": "13"}, ["SEEDS", "two seeds or more"]),
        ({"SEEDS": ""}, ["SEEDS", "give numbers"]),
        ({"SEEDS": "1 x"}, ["SEEDS", "give numbers"]),
        ({"SEEDS": "13 1013"}, ["SEEDS", "meet when a round adds 1000"]),
        ({"SEEDS": "7 7"}, ["SEEDS", "two are the same"]),
        ({"DECODE_ARGS": "--max_token 5"}, ["DECODE_ARGS", "did you mean max_tokens"]),
        ({"DECODE_ARGS": "--seed 5"}, ["DECODE_ARGS", "seed"]),
        ({"DECODE_ARGS": "--part 1/2"}, ["DECODE_ARGS", "PROMPTS=split"]),
        ({"DECODE_ARGS": "--temperature 0"}, ["DECODE_ARGS", "temperature 0"]),
        ({"ANNOTATE_ARGS": "--min_margin -1"}, ["ANNOTATE_ARGS", "min_margin"]),
        ({"ANNOTATE_ARGS": "--base_url http://localhost:8000/v1"}, ["ANNOTATE_ARGS", "base_url: is of a judge only"]),
        ({"data": "folder", "ANNOTATE_ARGS": "--test_fraction 0.1"}, ["ANNOTATE_ARGS", "both given"]),
        ({"POST_PROCESS_ARGS": "--drop"}, ["POST_PROCESS_ARGS", "drop"]),
        ({"HELD_OUT": "none.jsonl"}, ["none.jsonl"]),
        ({"HELD_OUT_FRACTION": "2"}, ["HELD_OUT_FRACTION: '2'"]),
    ],
)
def test_refused_before_anything_is_decoded(check, fails, world, monkeypatch, changes, words):
    monkeypatch.chdir(world)
    argv = check(**changes)
    error = fails(rounds.main, *argv)
    assert all(word in error for word in words), error
    assert not Path(argv[2]).exists()


def test_a_judge_may_move_between_rounds(check, monkeypatch):
    for port in (8000, 8001):
        address = f"--base_url http://localhost:{port}/v1 --concurrency {port}"[:-1]
        run(monkeypatch, check(REWARD_MODEL="judge:tiny", ANNOTATE_ARGS=f"{address} --pair_selection wpo_v2"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"ROUNDS": "2"}, "rounds was 3, now 2"),
        ({"PROMPTS": "all"}, 'prompts was "split", now "all"'),
        ({"REFERENCE": "start"}, 'reference was "previous", now "start"'),
        ({"SEEDS": "13 22"}, "seeds was [13, 21], now [13, 22]"),
        ({"REWARD_MODEL": "other/reward"}, 'reward was "given", now "other/reward"'),
        ({"data": "few.jsonl"}, "data was"),
        ({"TRAIN_ARGS": "--beta=3"}, "training was"),
        ({"DECODE_ARGS": "--temperature 0.5"}, 'decode was {}, now {"temperature": 0.5}'),
        ({"ANNOTATE_ARGS": "--min_margin 0.5"}, "annotate was"),
        ({"HELD_OUT_FRACTION": "0.1"}, "held_out_digest was"),
    ],
)
def test_other_settings_are_refused(check, fails, monkeypatch, changes, key):
    out = run(monkeypatch, check(ROUNDS="1" if "data" in changes else "3"))
    before = contents(out)
    error = fails(rounds.main, *check(**({"ROUNDS": "1"} if "data" in changes else {}) | changes))
    assert key in error and str(out) in error
    assert before == contents(out)


def test_another_model_and_other_prompts_are_refused(check, fails, monkeypatch, world, tmp_path):
    argv = check()
    shutil.copytree(world / "model", tmp_path / "model")
    shutil.copy(world / "prompts.jsonl", tmp_path / "prompts.jsonl")
    argv[:2] = str(tmp_path / "model"), str(tmp_path / "prompts.jsonl")
    run(monkeypatch, argv)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "One more?"}\n')
    assert "prompts_digest was" in fails(rounds.main, *argv)
    shutil.copy(world / "prompts.jsonl", tmp_path / "prompts.jsonl")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert "weights was" in fails(rounds.main, *argv)


def test_what_concerns_machines_may_change(check, monkeypatch):
    out = run(monkeypatch, check())
    before = (out / "rounds.json").read_bytes()
    more = {"TRAIN_ARGS": "--per_device_train_batch_size=1 --gradient_accumulation_steps=64 --save_steps=5"}
    run(monkeypatch, check(DECODE_ARGS="--data_parallel_size 4", ANNOTATE_ARGS="--batch_tokens 100", **more))
    assert (out / "rounds.json").read_bytes() == before
    assert read_yaml(str(out / "training.yaml"))["save_steps"] == "5"


def test_held_out_prompts(check, monkeypatch, world, tmp_path):
    out = run(monkeypatch, check(HELD_OUT_FRACTION="0.1", DECODE_ARGS="--keep_columns key"))
    rows = rows_of(out / "held_out.jsonl")
    assert len(rows) == 4 and all(row["prompt"].startswith(f"What is {row['key']} ") for row in rows)
    record = json.loads((out / "rounds.json").read_text())
    assert record["seeds"] == [13, 21] and record["training"]["objective"] == "simpo"
    shutil.rmtree(out)
    run(monkeypatch, check(HELD_OUT=str(world / "few.jsonl")))
    assert [row["prompt"] for row in rows_of(out / "held_out.jsonl")] == ["What is 0?", "What is 1?", "What is 2?"]
    shutil.rmtree(out)
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(world / "prompts.jsonl", data / "train_prefs.jsonl")
    shutil.copy(world / "few.jsonl", data / "test_prefs.jsonl")
    run(monkeypatch, [check()[0], str(data), str(out)])
    assert len(rows_of(out / "held_out.jsonl")) == 3


def test_measuring_is_greedy_and_scores_the_models_own_answers(check, monkeypatch):
    extra = {"DECODE_ARGS": "--temperature 0.7 --max_tokens 5", "ANNOTATE_ARGS": "--extra_responses x.json --seed 3"}
    out = run(monkeypatch, check(**extra))
    measured = read_options_of(DecodeArguments, out / "held_out/decode.yaml")
    assert (measured.temperature, measured.seed, measured.max_tokens) == (0, [0], 5)
    assert measured.data_dir == str(out / "held_out.jsonl") and measured.prompt_column == "prompt"
    scored = read_options_of(AnnotateArguments, out / "held_out/annotate.yaml")
    assert scored.scores_only and scored.extra_responses is None and scored.seed == 3


def read_options_of(kind: type, path: Path):
    return H4ArgumentParser(kind).parse([str(path)])


def test_training_settings(check, monkeypatch, world, capsys):
    argv = check(CONFIG=str(world / "dpo.yaml"), TRAIN_ARGS="--objective=dpo --learning_rate 5e-7", REFERENCE="start")
    settings = yaml.safe_load((run(monkeypatch, argv) / "training.yaml").read_text())
    reference = {"objective": "dpo", "ref_model_name_or_path": str(world / "model")}
    assert settings == {"use_wpo_weighting": False, "beta": 0.01, "learning_rate": "5e-7"} | reference
    shutil.rmtree(argv[2])
    settings = yaml.safe_load((run(monkeypatch, check(REFERENCE="start")) / "training.yaml").read_text())
    assert "ref_model_name_or_path" not in settings and "no effect" in capsys.readouterr().err


def test_answers_of_all_models_beside_each_other(monkeypatch, tmp_path, capsys, fails):
    for number, answers in enumerate(
        ({"a": "a0", "b": "b0", "c": "c0"}, {"a": "a1", "b": "b1"}, {"b": "b2", "a": "a2"})
    ):
        rows = [
            {"prompt": p, "format_prompt": p, "generated_text": a, "finish_reason": "stop", "num_tokens": 1, "key": p}
            for p, a in answers.items()
        ]
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "output_0.json").write_text(json.dumps(rows))
    monkeypatch.setattr(sys, "argv", ["held_out.py", str(tmp_path), "2"])
    held_out.main()
    assert json.loads((tmp_path / "all_outputs.json").read_text()) == [
        {"prompt": p, "all_generated_responses": [f"{p}0", f"{p}1", f"{p}2"], "key": p} for p in "ab"
    ]
    assert "1 held-out prompts are left out" in capsys.readouterr().err
    assert "no held-out prompt is answered by every model" in fails(held_out.main, str(tmp_path), "3")


def test_wrong_use(tmp_path):
    result = subprocess.run(["bash", ROUNDS, "only_a_model"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("usage: ")

"""on_policy_data_gen/run_pipeline.sh and run_hybrid.sh, from prompts to a trained model, with the pages' commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, losses, write_jsonl
from judge_server import KEY, serving
from pages import Checkout, block

PIPELINE = str(ROOT / "on_policy_data_gen" / "run_pipeline.sh")
HYBRID = str(ROOT / "on_policy_data_gen" / "run_hybrid.sh")


def run_pipeline(cwd: Path, *words: str, script: str = PIPELINE, **settings: str) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", script, *words], cwd=cwd, env=env | settings, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory, warm) -> tuple[Checkout, str]:
    """A checkout in which the pipeline went through, and what it said."""
    checkout = Checkout(tmp_path_factory.mktemp("pipeline"), warm)
    shown = block("on_policy_data_gen/README.md", "run_pipeline.sh")
    out, _ = checkout.run(shown.replace("data/llama3", '"out put"'))
    return checkout, out


def copy_responses(made, folder: str) -> Path:
    """A folder of the pipeline in which nothing is left to decode."""
    for split in ("train", "test"):
        shutil.copytree(made[0].folder / "out put" / split, made[0].folder / folder / split)
    return made[0].folder / folder


@pytest.mark.slow
def test_from_prompts_to_a_trained_model(made):
    """Train and test prompts, relative paths; the printed command trains on the result as it is."""
    checkout, out = made
    folder = checkout.folder / "out put" / "annotated"
    assert len(json.loads((folder / "all_outputs_bin.json").read_text())) == 8
    assert len(json.loads((folder / "all_outputs_bin_test.json").read_text())) == 3

    checkout.run(out.strip().splitlines()[-1])
    assert (folder / "simpo" / "model.safetensors").is_file()
    assert len(losses(folder / "simpo")) == 2
    assert json.loads((folder / "simpo" / "all_results.json").read_text())["eval_samples"] == 3


@pytest.mark.slow
def test_from_a_model_to_its_numbers(made):
    """The front page's block, whose pipeline finds its responses made; on a report beside the run above."""
    checkout, _ = made
    copy_responses(made, "data/mine")
    shutil.copytree(checkout.folder / "out put" / "annotated" / "simpo", checkout.folder / "outputs" / "another")
    write_jsonl(checkout.folder / "questions.jsonl", [{"instruction": f"What is {i}?"} for i in range(2)])
    checkout.add_options({"*generate_answers.py *": "--questions questions.jsonl --stop_token_ids 3"})
    out, _ = checkout.run(block("README.md", "run_pipeline.sh"))
    assert "40 responses done before" in out and "all prompts agree" in out
    answers = checkout.folder / "outputs/eval/alpacaeval2/Llama-3-Instruct-8B-SimPO-v0.2/model_outputs.json"
    assert len(json.loads(answers.read_text())) == 2
    assert "mine, another" in (checkout.folder / "report.html").read_text()


@pytest.mark.slow
def test_step_by_step(made):
    """The three commands by themselves; the first finds its responses made."""
    checkout, _ = made
    place = checkout.folder / "on_policy_data_gen" / "datasets"
    shutil.copytree(checkout.folder / "out put" / "train", place / "llama3_ultrafeedback")
    out, _ = checkout.run(block("on_policy_data_gen/README.md", "cd on_policy_data_gen"))
    assert "40 responses done before" in out
    pairs = json.loads((place / "llama3_ultrafeedback" / "all_outputs_bin.json").read_text())
    expected = json.loads((checkout.folder / "out put" / "annotated" / "all_outputs_bin.json").read_text())
    assert pairs and all(pair in expected for pair in pairs)  # without the test prompts, some are held out


@pytest.mark.slow
def test_hybrid_data_of_wpo(made):
    """The model's answers (of an earlier run: none is decoded again) and the data's, rated by a judge; pairs by wpo_v2;
    the printed command trains with WPO. Then with a judge of one's own."""
    checkout, _ = made

    def reply(messages):
        answer = messages[0]["content"].split("<answer>\n")[1].split("\n</answer>")[0]
        return f"Rating: [[{10 if ' is ' in answer else 4 if answer.startswith('Hard') else 3}]]", []

    folder = copy_responses(made, "data/llama3_hybrid")
    with serving(reply) as server:
        judge = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY}
        out, errors = checkout.run(block("on_policy_data_gen/README.md", "gpt-4-turbo"), **judge)
        assert "40 responses done before" in out and "engine" not in errors
        asked = len(server.served)
    for name, count in (("bin", 8), ("bin_test", 3)):
        pairs = json.loads((folder / "annotated" / f"all_outputs_{name}.json").read_text())
        assert len(pairs) == count
        for pair in pairs:
            own, scores = pair["all_generated_responses"][:5], pair["all_rm_scores"]
            assert pair["all_generated_responses"][5] == pair["chosen"][-1]["content"]
            lowest = [answer for answer, score in zip(own, scores, strict=False) if score == 3]
            assert scores[5:] == [10, 4] and pair["rejected"][-1]["content"] in lowest
    assert asked <= 1 + 11 * 7 and "22 extra responses added" in out
    printed = out.strip().splitlines()[-1]
    assert "run_wpo.py" in printed and "llama3_instruct.yaml" in printed
    checkout.run(printed)
    assert len(losses(folder / "annotated" / "wpo")) == 2

    own = copy_responses(made, "data/own")
    with serving(reply) as server:
        shown = block("on_policy_data_gen/README.md", "BASE_URL=").replace("http://localhost:8000/v1", server.url)
        checkout.run(shown, OPENAI_API_KEY="any word")
        assert {request["request"]["model"] for request in server.served} == {"Qwen/Qwen2.5-72B-Instruct"}
    for name in ("all_outputs_bin.json", "all_outputs_bin_test.json"):
        assert (own / "annotated" / name).read_bytes() == (folder / "annotated" / name).read_bytes()


def test_hybrid_data_needs_a_judge(tmp_path):
    result = run_pipeline(tmp_path, "model", "prompts.jsonl", "out", script=HYBRID)
    assert result.returncode == 2 and result.stderr.startswith("usage: JUDGE=NAME")
    result = run_pipeline(tmp_path, "model", "p", "out", script=HYBRID, JUDGE="j", OPENAI_API_KEY="")
    assert result.returncode == 2 and "OPENAI_API_KEY is not set" in result.stderr


def test_wrong_use(tmp_path):
    result = run_pipeline(tmp_path, "only_a_model")
    assert result.returncode == 2 and result.stderr.startswith("usage: ")


def test_stops_at_the_first_error(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"question": "a"}\n')
    result = run_pipeline(tmp_path, "model", "prompts.jsonl", "out")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and "prompt_column" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_test_split_is_found_before_anything_is_decoded(tmp_path):
    write_jsonl(tmp_path / "prompts" / "train_prefs.jsonl", [{"prompt": "a"}])
    result = run_pipeline(tmp_path, "model", "prompts", "out")
    assert result.returncode == 2 and "test_prefs" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()


def test_a_signal_ends_what_is_running(tmp_path):
    """... although it goes to the script alone."""
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    (tmp_path / "python").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/started\nexec sleep 600\n")
    (tmp_path / "python").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", PIPELINE, "model", "prompts.jsonl", "out"], cwd=tmp_path, env=env)
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not Path(f"/proc/{(tmp_path / 'started').read_text().strip()}").exists()

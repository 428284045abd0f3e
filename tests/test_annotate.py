"""reward_model_annotate.py: scores, pairs and splits, by one process and by two, of made and real data."""

import json
import shutil
import sys

import pytest
import torch
from annotate_world import asked, read, run, write_candidates
from conftest import ROOT, run_script

from results import split_pairs
from rewards import load_reward_model
from rewards.decoder import Decoder
from simpo.data.load import get_datasets
from tiny_models import tiny_tokenizer
from tiny_reward_models import (
    tiny_classifier,
)

SCRIPT = str(ROOT / "on_policy_data_gen" / "reward_model_annotate.py")


def test_results(monkeypatch, tmp_path, armorm, candidates, capsys):
    out = tmp_path / "out"
    run(
        monkeypatch,
        "--generation_file",
        candidates,
        "--reward_model",
        armorm,
        "--output_dir",
        out,
        "--test_fraction",
        0.25,
        drawn=True,
    )
    given, model = json.loads(candidates.read_text()), load_reward_model(armorm)
    model.load(torch.device("cpu"), torch.float32)
    scored, pairs = read(out, "all_outputs_rm.json"), read(out, "all_outputs_bin.json")
    assert [{k: row[k] for k in given[0]} for row in scored] == given
    for row in scored:
        alone = [model.score(row["prompt"], [response])[0] for response in row["all_generated_responses"]]
        assert row["all_rm_scores"] == pytest.approx(alone, abs=1e-4)
    for row, pair in zip(scored, pairs, strict=True):
        scores, responses = row["all_rm_scores"], row["all_generated_responses"]
        best, worst = responses[scores.index(max(scores))], responses[scores.index(min(scores))]
        user = {"role": "user", "content": row["prompt"]}
        assert pair == row | {
            "chosen": [user, {"role": "assistant", "content": best}],
            "rejected": [user, {"role": "assistant", "content": worst}],
        }
    splits = get_datasets({str(out / "datasets"): 1.0})
    assert (len(splits["train"]), len(splits["test"])) == (18, 6)
    rows = [row for split in splits.values() for row in split]
    expected = {pair["prompt"]: (pair["chosen"], pair["rejected"]) for pair in pairs}
    assert {asked(row): (row["chosen"], row["rejected"]) for row in rows} == expected
    report = capsys.readouterr().out
    assert "24 prompts, 96 responses scored" in report and "24 pairs kept" in report
    assert (out / "annotate_summary.txt").read_text() in report + "\n"
    assert (out / "annotate_summary.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_rules_and_margin_without_scoring_again(monkeypatch, tmp_path, armorm, candidates, capsys):
    argv = [
        "--generation_file",
        candidates,
        "--reward_model",
        armorm,
        "--output_dir",
        tmp_path,
        "--test_fraction",
        0.25,
    ]
    run(monkeypatch, *argv)
    by_rule = {"max_min": read(tmp_path, "all_outputs_bin.json")}
    monkeypatch.setattr(Decoder, "values", None)  # everything comes from the journal
    for rule in ("wpo_v2", "random_rejected"):
        run(monkeypatch, *argv, "--pair_selection", rule)
        by_rule[rule] = read(tmp_path, "all_outputs_bin.json")
        assert [row["chosen"] for row in by_rule[rule]] == [row["chosen"] for row in by_rule["max_min"]]
    assert by_rule["random_rejected"] != by_rule["max_min"]
    run(monkeypatch, *argv, "--pair_selection", "random_rejected")
    assert read(tmp_path, "all_outputs_bin.json") == by_rule["random_rejected"]
    run(monkeypatch, *argv, "--pair_selection", "random_rejected", "--seed", 1)
    assert read(tmp_path, "all_outputs_bin.json") != by_rule["random_rejected"]

    margins = sorted(max(r["all_rm_scores"]) - min(r["all_rm_scores"]) for r in read(tmp_path, "all_outputs_rm.json"))
    capsys.readouterr()
    run(monkeypatch, *argv, "--min_margin", (margins[9] + margins[10]) / 2)
    assert len(read(tmp_path, "all_outputs_bin.json")) == 14
    assert "10 pairs dropped: margin below min_margin" in capsys.readouterr().out


def test_identical_scores_are_dropped(monkeypatch, tmp_path, armorm, capsys):
    rows = [{"prompt": f"p{i}", "all_generated_responses": ["a", "b"] if i else ["a", "a"]} for i in range(4)]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    run(monkeypatch, "--generation_file", tmp_path / "in.json", "--reward_model", armorm, "--output_dir", tmp_path)
    assert len(read(tmp_path, "all_outputs_rm.json")) == 4
    assert [row["prompt"] for row in read(tmp_path, "all_outputs_bin.json")] == ["p1", "p2", "p3"]
    assert "1 pairs dropped: all scores identical" in capsys.readouterr().out


def test_a_later_run_without_test_prompts_leaves_none(monkeypatch, tmp_path, armorm, candidates):
    out = tmp_path / "out"
    argv = ["--generation_file", candidates, "--reward_model", armorm, "--output_dir", out]
    run(monkeypatch, *argv, "--test_generation_file", write_candidates(tmp_path / "test.json", 3, seed=1))
    assert (out / "all_outputs_rm_test.json").exists() and (out / "all_outputs_bin_test.json").exists()
    run(monkeypatch, *argv)
    assert not list(out.glob("*_test.json"))


def test_split_does_not_depend_on_order():
    pairs = [{"prompt": f"p{i}"} for i in range(50)]
    splits = split_pairs(pairs, 0.1)
    assert (len(splits["train"]), len(splits["test"])) == (45, 5)
    held_out = {row["prompt"] for row in splits["test"]}
    assert {row["prompt"] for row in split_pairs(pairs[::-1], 0.1)["test"]} == held_out
    assert len(split_pairs(pairs[:3], 0.01)["test"]) == 1


def test_prompts_are_shared_unless_it_is_turned_off(monkeypatch, tmp_path, armorm, candidates, capsys):
    """The run says so; it may change in the middle of a folder."""
    shared, apart = tmp_path / "shared", tmp_path / "apart"
    argv = ["--generation_file", candidates, "--reward_model", armorm, "--scores_only", "--output_dir"]
    run(monkeypatch, *argv, shared)
    assert "scoring: the answers to a prompt share it\n" in capsys.readouterr().out
    run(monkeypatch, *argv, apart, "--shared_prompt", "false")
    assert "scoring: every answer in a row of its own (shared_prompt is false)\n" in capsys.readouterr().out
    expected = [row["all_rm_scores"] for row in read(apart, "all_outputs_rm.json")]
    journal = shared / "journal" / "scores.0.jsonl"
    for rest in (journal.read_text(), journal.read_text().partition("\n")[2]):
        journal.write_text(rest)
        run(monkeypatch, *argv, shared, "--shared_prompt", "false")
        for row, scores in zip(read(shared, "all_outputs_rm.json"), expected, strict=True):
            assert row["all_rm_scores"] == pytest.approx(scores, abs=1e-5)


def test_one_date_for_all_scores_of_a_folder(monkeypatch, tmp_path, candidates):
    """A template that writes today's date: a run on another day goes on with the first one's."""
    model = tiny_classifier(tmp_path / "rm")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(model)
    argv = ["--generation_file", candidates, "--reward_model", model, "--output_dir", tmp_path / "out"]
    run(monkeypatch, *argv)
    settings = tmp_path / "out" / "annotate_settings.json"
    record = json.loads(settings.read_text())
    assert set(record["chat_template_kwargs"]) == {"strftime_now"}
    settings.write_text(json.dumps(record | {"chat_template_kwargs": {"strftime_now": "2024-07-26"}}))
    run(monkeypatch, *argv)
    assert json.loads(settings.read_text())["chat_template_kwargs"] == {"strftime_now": "2024-07-26"}


@pytest.mark.slow
def test_two_processes_share_the_work(warm, monkeypatch, tmp_path, armorm, candidates):
    argv = ["--generation_file", candidates, "--reward_model", armorm]
    run(monkeypatch, *argv, "--output_dir", tmp_path / "one")
    launch = ["accelerate", "launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    words = [*launch, "--dynamo_backend=no", SCRIPT, *argv, "--torch_dtype=float32", "--output_dir", tmp_path / "two"]
    result = run_script(*map(str, words), env=warm)
    assert result.returncode == 0, result.stderr
    sizes = [(tmp_path / "two" / "journal" / f"scores.{rank}.jsonl").stat().st_size for rank in (0, 1)]
    assert all(size > 1000 for size in sizes)
    one, two = (read(tmp_path / name, "all_outputs_rm.json") for name in ("one", "two"))
    assert [row["prompt"] for row in one] == [row["prompt"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert a["all_rm_scores"] == pytest.approx(b["all_rm_scores"], abs=1e-4)
    assert result.stdout.count("24 prompts, 96 responses scored") == 1


@pytest.mark.slow
def test_real_decodes(shared, monkeypatch, tmp_path):
    """220 real prompts with five real responses each, through a classifier with a real vocabulary."""
    from transformers import AutoTokenizer

    from post_process import main as post_process

    folder = tmp_path / "real"
    shutil.copytree(shared / "real_decodes", folder, copy_function=shutil.copy)
    folder.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["post_process.py", "--generation_file_dir", str(folder)])
    post_process()
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "mistral_v1")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": len(tokenizer)}
    name = tiny_classifier(tmp_path / "rm", "mistral", pad=False, **small)
    tokenizer.save_pretrained(name)
    joined = read(folder, "all_outputs.json")
    argv = ["--generation_file", folder / "all_outputs.json", "--reward_model", name, "--output_dir", folder]
    run(monkeypatch, *argv)
    scored, pairs = read(folder, "all_outputs_rm.json"), read(folder, "all_outputs_bin.json")
    assert [{k: row[k] for k in joined[0]} for row in scored] == joined
    distinct = [row for row in scored if len(set(row["all_rm_scores"])) > 1]
    assert [row["prompt"] for row in pairs] == [row["prompt"] for row in distinct]
    for row in pairs:
        score = dict(zip(row["all_generated_responses"], row["all_rm_scores"], strict=True))
        assert score[row["chosen"][1]["content"]] == max(row["all_rm_scores"])
        assert score[row["rejected"][1]["content"]] == min(row["all_rm_scores"])
    splits = get_datasets({str(folder / "datasets"): 1.0})
    assert len(splits["train"]) + len(splits["test"]) == len(pairs)

    (folder / "all_outputs.json").write_text(json.dumps(joined[::-1]))  # the order of the rows is irrelevant
    run(monkeypatch, *argv)
    assert read(folder, "all_outputs_bin.json") == pairs[::-1]
    again = get_datasets({str(folder / "datasets"): 1.0})
    assert {asked(row) for row in again["test"]} == {asked(row) for row in splits["test"]}

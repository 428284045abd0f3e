"""on_policy_data_gen/reward_model_annotate.py and the reward models: golden values, batching, results, refusals."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from annotate_world import answers, asked, read, run, write_candidates, write_rows
from conftest import ROOT, run_script
from crashes import contents, stops_of
from safetensors.torch import load_file, save_file

from results import split_pairs
from reward_model_annotate import main
from rewards import load_reward_model
from rewards.decoder import Decoder
from simpo.data.load import get_datasets
from simpo.folder import Journal, lock_folder
from tiny_models import tiny_tokenizer
from tiny_reward_models import (
    tiny_armorm,
    tiny_classifier,
    tiny_encoder,
)

SCRIPT = str(ROOT / "on_policy_data_gen" / "reward_model_annotate.py")


@pytest.fixture(scope="module")
def armorm(tmp_path_factory) -> str:
    return tiny_armorm(tmp_path_factory.mktemp("rm") / "armorm")


@pytest.fixture(scope="module")
def candidates(tmp_path_factory) -> Path:
    return write_candidates(tmp_path_factory.mktemp("candidates") / "all_outputs.json", 24)


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


# ---- one bad item never blocks the rest ---------------------------------------------------------------------------


def test_what_cannot_be_scored_is_kept_counted_and_asked_again_only_on_request(monkeypatch, tmp_path, capsys):
    """A response that is too long, one that is no number, one whose prompt is a conversation that the model cannot
    read: the others are scored and paired."""
    model = tiny_encoder(tmp_path / "rm", "bert")
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rows = [(f"p{i}", answers("paris", "seven days", "is")) for i in range(5)]
    rows += [("long", answers("paris", "z " * 90, "is")), (conversation, answers("a", "b"))]
    argv = ["--generation_file", write_rows(tmp_path / "in.json", *rows), "--reward_model", model]
    argv += ["--output_dir", tmp_path / "out"]
    run(monkeypatch, *argv)
    report = capsys.readouterr()
    scores = [row["all_rm_scores"] for row in read(tmp_path / "out", "all_outputs_rm.json")]
    assert [[score is None for score in row] for row in scores] == [[False] * 3] * 5 + [
        [False, True, False],
        [True] * 2,
    ]
    assert len(read(tmp_path / "out", "all_outputs_bin.json")) == 6
    assert "3 responses without a score" in report.out
    assert "1 pairs dropped: fewer than two responses with a score" in report.out
    assert "cannot be scored, 1 times: it has 18" in report.err and "64 positions" in report.err
    assert "cannot be scored, 2 times" in report.err and "several messages" in report.err

    journal = (tmp_path / "out" / "journal" / "scores.0.jsonl").read_text()
    run(monkeypatch, *argv)
    assert (tmp_path / "out" / "journal" / "scores.0.jsonl").read_text() == journal
    assert "cannot be scored, 1 times" in capsys.readouterr().err
    run(monkeypatch, *argv, "--retry_failed")
    assert "scoring: 3 of 3 responses" in capsys.readouterr().err
    assert (tmp_path / "out" / "journal" / "scores.0.jsonl").read_text() != journal
    assert [row["all_rm_scores"] for row in read(tmp_path / "out", "all_outputs_rm.json")] == scores


def test_the_longest_not_fitting_do_not_stop_the_rest(monkeypatch, tmp_path, capsys):
    """Memory is enough for all but the longest, which come first."""
    values = Decoder.values

    def small_memory(self, batch):
        if max(encoded.length for _, encoded in batch) > 70:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return values(self, batch)

    monkeypatch.setattr(Decoder, "values", small_memory)
    rows = [(f"p{i}", answers("z " * (60 + i), "short", "a bit longer")) for i in range(8)]
    monkeypatch.setattr("scoring.HOPELESS", 4)
    argv = ["--generation_file", write_rows(tmp_path / "in.json", *rows), "--output_dir", tmp_path / "out"]
    run(monkeypatch, *argv, "--reward_model", tiny_classifier(tmp_path / "rm"), "--batch_tokens", 200)
    assert "8 pairs kept" in capsys.readouterr().out


def test_cut_by_max_length_is_counted(monkeypatch, tmp_path, capsys):
    rows = [(f"p{i}", answers("paris", "z " * 90, "is")) for i in range(4)]
    argv = ["--generation_file", write_rows(tmp_path / "in.json", *rows), "--output_dir", tmp_path / "out"]
    for _ in range(2):
        run(monkeypatch, *argv, "--reward_model", tiny_encoder(tmp_path / "rm", "bert"), "--max_length", 64)
        assert "4 responses cut to the longest length" in capsys.readouterr().out


def test_a_later_run_without_test_prompts_leaves_none(monkeypatch, tmp_path, armorm, candidates):
    out = tmp_path / "out"
    argv = ["--generation_file", candidates, "--reward_model", armorm, "--output_dir", out]
    run(monkeypatch, *argv, "--test_generation_file", write_candidates(tmp_path / "test.json", 3, seed=1))
    assert (out / "all_outputs_rm_test.json").exists() and (out / "all_outputs_bin_test.json").exists()
    run(monkeypatch, *argv)
    assert not list(out.glob("*_test.json"))


def test_damaged_journal_lines_are_scored_again(monkeypatch, tmp_path, armorm, candidates):
    argv = ["--generation_file", candidates, "--reward_model", armorm, "--output_dir", tmp_path]
    run(monkeypatch, *argv)
    before = read(tmp_path, "all_outputs_rm.json")
    journal = tmp_path / "journal" / "scores.0.jsonl"
    lines = journal.read_text().splitlines()
    key = next(iter(json.loads(lines[0])))
    journal.write_text(
        "\n".join(['{"torn', "[1]", "null", json.dumps({key: "high", "x": {"cannot": 3}}), *lines[1:], ""])
    )
    run(monkeypatch, *argv)
    assert read(tmp_path, "all_outputs_rm.json") == before


def test_split_does_not_depend_on_order():
    pairs = [{"prompt": f"p{i}"} for i in range(50)]
    splits = split_pairs(pairs, 0.1)
    assert (len(splits["train"]), len(splits["test"])) == (45, 5)
    held_out = {row["prompt"] for row in splits["test"]}
    assert {row["prompt"] for row in split_pairs(pairs[::-1], 0.1)["test"]} == held_out
    assert len(split_pairs(pairs[:3], 0.01)["test"]) == 1


def test_kills_at_every_file_operation(monkeypatch, tmp_path, armorm):
    """The same command then writes the same files; no score is computed twice but those in flight."""
    candidates, out = write_candidates(tmp_path / "in.json", 4, responses=2), tmp_path / "out"
    argv = ["reward_model_annotate.py", "--torch_dtype", "float32", "--generation_file", str(candidates)]
    argv += ["--reward_model", armorm, "--batch_tokens", "200", "--output_dir", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr("summary.draw", lambda path, *data: path.write_bytes(b"picture"))  # takes most of the time
    rows = []
    values = Decoder.values
    monkeypatch.setattr(Decoder, "values", lambda self, batch: rows.append(len(batch)) or values(self, batch))
    files = ("all_outputs_*.json", "datasets/**/*.arrow", "annotate_*", "journal/*.jsonl")
    stops = stops_of(main, out, tmp_path / "stops")
    whole, once = contents(out, *files), list(rows)
    assert len(whole) > 6 and sum(once) == 8 and len(once) > 2
    for stop in stops:
        stop.restore()
        kept = sum(len(line) for line in Journal.read(out, "scores.*.jsonl"))
        rows.clear()
        main()
        assert contents(out, *files) == whole, stop
        assert kept + sum(rows) == 8, stop


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


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_bad_reward_models(fails, tmp_path, candidates, armorm):
    argv = ["--generation_file", str(candidates), "--output_dir", str(tmp_path / "out"), "--reward_model"]
    assert "2 labels" in fails(main, *argv, tiny_classifier(tmp_path / "two", num_labels=2))
    assert "nowhere" in fails(main, *argv, str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()

    headless = Path(tiny_classifier(tmp_path / "headless"))
    weights = load_file(headless / "model.safetensors")
    weights.pop("score.weight")
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    assert "lacks score.weight" in fails(main, *argv, str(headless))

    pickled = Path(tiny_classifier(tmp_path / "pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "pickled" in fails(main, *argv, str(pickled))

    patternless = Path(shutil.copytree(armorm, tmp_path / "patternless"))
    config = json.loads((patternless / "config.json").read_text())
    del config["gating_pattern"]
    (patternless / "config.json").write_text(json.dumps(config))
    assert "gating_pattern" in fails(main, *argv, str(patternless))
    assert not list((tmp_path / "out").glob("all_outputs*"))


def test_scores_that_are_no_numbers(fails, tmp_path, candidates, armorm):
    broken = Path(shutil.copytree(armorm, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["regression_layer.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    argv = ["--generation_file", str(candidates), "--output_dir", str(tmp_path / "out")]
    error = fails(main, *argv, "--reward_model", str(broken))
    assert "not a finite number" in error and "Question 0-" in error
    assert not list((tmp_path / "out").glob("all_outputs*"))


def test_remote_code_only_when_asked(fails, tmp_path, candidates):
    name = Path(tiny_classifier(tmp_path / "remote"))
    config = json.loads((name / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "homemade.Config"}}
    (name / "config.json").write_text(json.dumps(config))
    (name / "homemade.py").write_text("raise SystemExit('ran')\nclass Config: pass\n")
    error = fails(
        main, "--generation_file", str(candidates), "--output_dir", str(tmp_path), "--reward_model", str(name)
    )
    assert "trust_remote_code" in error


def test_another_model_or_a_second_run_in_the_folder(monkeypatch, fails, tmp_path, candidates, armorm):
    argv = ["--generation_file", str(candidates), "--output_dir", str(tmp_path / "out"), "--reward_model"]
    run(monkeypatch, *argv, armorm)
    before = (tmp_path / "out" / "all_outputs_rm.json").read_text()
    error = fails(main, *argv, tiny_classifier(tmp_path / "other"), "--torch_dtype", "bfloat16")
    assert "reward_model was" in error and 'torch_dtype was "float32", now "bfloat16"' in error
    with lock_folder(tmp_path / "out"):
        assert "another run" in fails(main, *argv, armorm, "--torch_dtype", "float32")
    assert (tmp_path / "out" / "all_outputs_rm.json").read_text() == before


def test_bad_options(fails, tmp_path, candidates, armorm):
    argv = ["--generation_file", str(candidates), "--output_dir", str(tmp_path / "out"), "--reward_model", armorm]
    assert "test_fraction" in fails(main, *argv, "--test_fraction", "1.5")
    assert "choose one" in fails(main, *argv, "--test_fraction", "0.1", "--test_generation_file", str(candidates))
    assert "pair_selection" in fails(main, *argv, "--pair_selection", "best")
    bert = tiny_encoder(tmp_path / "bert", "bert")
    error = fails(main, *argv[:-1], bert, "--shared_prompt", "true")
    assert "shared_prompt: not with" in error and "bert models are not known" in error
    error = fails(main, *argv[:-1], "judge:gpt-4", "--shared_prompt", "false")
    assert "shared_prompt: has no effect on a judge" in error
    (tmp_path / "extra.json").write_text('[{"prompt": "a"}]')
    assert "extra_responses" in fails(main, *argv, "--extra_responses", str(tmp_path / "extra.json"))
    (tmp_path / "extra.json").write_text('[{"prompt": "a", "all_generated_responses": ["b"]}]')
    assert "no prompt of" in fails(main, *argv, "--extra_responses", str(tmp_path / "extra.json"))
    assert not (tmp_path / "out").exists()
    error = fails(main, *argv, "--torch_dtype", "float32", "--min_margin", "1e9")
    assert "no pairs are left" in error and not list((tmp_path / "out").glob("all_outputs*"))

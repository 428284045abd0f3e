"""reward_model_annotate.py: what cannot be scored, what a stop left, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import torch
from annotate_world import answers, read, run, write_candidates, write_rows
from crashes import contents, stops_of
from safetensors.torch import load_file, save_file

from reward_model_annotate import main
from rewards.decoder import Decoder
from simpo.folder import Journal, lock_folder
from tiny_reward_models import tiny_classifier, tiny_encoder

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

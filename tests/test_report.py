"""The report: what it reads, what it says, and that nothing from a run gets out of its place on the page."""

import base64
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from report import main
from reporting.headline import headline, warnings_of
from reporting.numbers import MINUS, gain, groups, measures, points
from reporting.page import curve_sections, dropped_rows, render, settings_blocks
from reporting.read import read_run

HOSTILE = """</script></div><script>alert("1")</script><img src=x onerror='alert(2)'> {{ 7*7 }} $\\frac$ &amp;"""


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def training(folder: Path, history=None, **settings) -> Path:
    write(
        folder / "run_config.yaml",
        yaml.safe_dump({"identity": {"objective": "simpo"}, "settings": {"output_dir": str(folder)} | settings}),
    )
    if history is None:
        history = [
            {"step": 1, "loss": 1.5, "rewards/accuracies": 0.5, "logps/chosen": -2.0, "logps/rejected": -2.1},
            {"step": 2, "eval_loss": 1.4, "eval_rewards/accuracies": 0.25},
            {"step": 2, "loss": 1.2, "rewards/accuracies": 0.75, "logps/chosen": -2.2, "logps/rejected": -3.0},
            {"step": 4, "eval_loss": 1.0, "eval_rewards/accuracies": 0.75, "eval_rewards/margins": 0.5},
            {"step": 4, "train_runtime": 3.0},
        ]
    write(folder / "trainer_state.json", {"log_history": history})
    return folder


def graded(grades: str) -> list[dict]:
    """Rows with one answer per letter, r(ight) or w(rong)."""
    return [{"prompt": f"prompt {i}", "answer": f"answer {i}{g}", "correct": g == "r"} for i, g in enumerate(grades)]


def quickstart(folder: Path) -> Path:
    """A folder with every kind of file."""
    training(folder / "models/sft", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"train_runtime": 1}], beta=1)
    simpo = training(folder / "models/simpo", beta=2.5)
    write(simpo / "all_results.json", {"eval_rewards/accuracies": 0.75, "eval_loss": 1.0, "eval_samples": 48})
    counts = {"rows": 6, "prompt_cut": 3, "response_cut": 0, "dropped_identical": 2, "dropped_empty": 0}
    write(simpo / "data_report.json", {"train": counts})
    rows = [
        {
            "prompt": "a",
            "all_generated_responses": ["x", "yyy", "four", "2."],
            "all_rm_scores": [0.5, -1.0, 0.75, 0.25],
        },
        {"prompt": "b", "all_generated_responses": ["z", "zz"], "all_rm_scores": [0.2, 0.2]},
        {"prompt": "c", "all_generated_responses": ["u", "v"], "all_rm_scores": [0.2, 0.3]},
        {"prompt": "e", "all_generated_responses": ["s", "t"], "all_rm_scores": [0.2, None]},
    ]
    pairs = [
        rows[0]
        | {"chosen": [{"role": "assistant", "content": good}], "rejected": [{"role": "assistant", "content": bad}]}
        for good, bad in (("x", "yyy"), ("four", "2."))
    ]
    data = folder / "onpolicy/train"
    write(data / "all_outputs_rm.json", rows)
    write(data / "all_outputs_bin.json", pairs)
    sampled = [{"prompt": p, "generated_text": p, "finish_reason": "length" if p == "d" else "stop"} for p in "abcd"]
    write(data / "output_13.json", sampled)
    write(data / "output_42.json", sampled)
    write(data / "all_outputs.json", rows)
    write(data / "skipped_prompts.json", [{"prompt": "long", "num_tokens": 9}])
    before, after = graded("rrww"), graded("wrrr")
    before[0] |= {"prompt": HOSTILE, "answer": HOSTILE, "expected": HOSTILE}
    after[0] |= {"prompt": HOSTILE, "answer": HOSTILE}
    write(folder / "answers_before.json", before)
    write(folder / "answers_after.json", after[::-1])
    lengths = {"mean_length_before": 19.0, "mean_length_after": 7.0}
    write(folder / "summary.json", lengths | {"accuracy_before": 0.5, "accuracy_after": 0.75, "n": 4, "seconds": 65})
    score = {"win_rate": 21.5, "standard_error": 1.25, "ci_low": 19.0, "ci_high": 24.0}
    write(folder / "scores/alpacaeval2.json", {HOSTILE: score})
    return folder


class Elements(HTMLParser):
    """Counts the elements, and collects the addresses and the text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.text = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_page_is_whole_and_everything_in_it_is_escaped(tmp_path, monkeypatch, capsys):
    quickstart(tmp_path / HOSTILE.replace("/", "_"))
    output = tmp_path / "new" / "report.html"
    runs = [str(tmp_path / HOSTILE.replace("/", "_")), str(training(tmp_path / "other", beta=10.0))]
    monkeypatch.setattr(sys, "argv", ["report.py", *runs, "--output", str(output)])
    main()
    assert capsys.readouterr().out == f"wrote {output}\n"
    page = output.read_text()
    found = Elements(page)
    assert "script" not in found.tags and not found.handlers
    assert found.tags.count("img") == page.count("data:image/svg+xml;base64,") > 8
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert HOSTILE in found.text  # as text
    for part in ("Evaluation", "Settings", "Curves", "Reward scores", "Dropped and cut", "Answers"):
        assert part in found.text
    svg = base64.b64decode(re.search(r"svg\+xml;base64,([^\"]+)", page)[1]).decode()
    assert "</svg>" in svg and "<script" not in svg
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_the_same_runs_give_the_same_page(tmp_path):
    write(training(tmp_path) / "all_outputs_rm.json", [{"all_rm_scores": [0.5, 1.0]}])
    assert render([read_run(tmp_path, "a")]) == render([read_run(tmp_path, "a")])


def test_headline_is_the_graded_answers_with_their_paired_error(tmp_path):
    run = read_run(quickstart(tmp_path), "run")
    result, _ = gain(run)
    # differences -1, 0, 1, 1: mean 1/4, variance 11/12, standard error sqrt(11/48)
    assert result[:3] == (0.5, 0.75, 4) and result.error == pytest.approx(0.4787136) and result.is_paired
    top = headline(run)
    assert top.figure == "50.0 % → 75.0 %" and top.tone == "neutral"
    assert top.text.startswith("No clear change: +25.0 points") and "2 answers became right, 1 became wrong" in top.text
    assert "19 → 7.0 tokens" in top.text and "1 min 5 s" in top.text


def test_kinds_that_changed_clearly_are_on_the_first_screen(tmp_path):
    for side, grades in (("before", "w" * 16 + "r" * 12), ("after", "r" * 16 + "w" * 10 + "rr")):
        rows = graded(grades)
        for number, row in enumerate(rows):
            row |= {"kind": "short" if number < 16 else "long", "seen": number % 2 == 0}
        write(tmp_path / f"answers_{side}.json", rows)
    for side, grade in (("before", "w"), ("after", "r")):  # of too few prompts, a kind is not named
        rows = json.loads((tmp_path / f"answers_{side}.json").read_text())
        rows += [row | {"prompt": f"few {row['prompt']}", "kind": "few"} for row in graded(grade * 9)]
        write(tmp_path / f"answers_{side}.json", rows)
    run = read_run(tmp_path, "run")
    # long: ten of twelve became wrong, differences -1 (10 times) and 0 (twice): standard error sqrt((10 / 6) / 11 / 12)
    assert headline(run).text.endswith(f"\nBetter: short (+100.0 ± 0.0).\nWorse: long ({MINUS}83.3 ± 11.2).")
    kinds = {m.what: m.value for m in measures(run) if m.where.startswith("Correct of each kind")}
    assert list(kinds)[0::4] == ["short (n = 16)", "long (n = 12)"]
    assert kinds["long (n = 12)"] == f"100.0 → 16.7 ({MINUS}83.3 ± 11.2)"
    assert kinds["trained on (n = 14)"] == kinds["not trained on (n = 14)"] == "42.9 → 64.3 (+21.4 ± 26.1)"
    assert "Worse: long" in Elements(render([run])).text


def test_summary_alone_gives_unpaired_errors(tmp_path):
    write(tmp_path / "summary.json", {"accuracy_before": 0.6, "accuracy_after": 0.8, "n": 400})
    found = {m.what: m.value for m in measures(read_run(tmp_path, "run"))}
    assert found["correct before, %"] == "60.0 ± 2.4" and found["correct after, %"] == "80.0 ± 2.0"
    assert found["difference, points (unpaired)"] == "+20.0 ± 3.2"
    assert headline(read_run(tmp_path, "run")).tone == "better"
    write(tmp_path / "summary.json", {"accuracy_before": 0.8, "accuracy_after": 0.6, "n": 400})
    assert headline(read_run(tmp_path, "run")).tone == "worse"


def test_evaluation_numbers(tmp_path):
    found = {(m.where, m.what): m.value for m in measures(read_run(quickstart(tmp_path), "run"))}
    assert found["alpacaeval2", "win rate, %"] == "21.50 ± 1.25 [19.0 to 24.0]"
    # sqrt(0.75 x 0.25 / 48) = 0.0625
    assert found["simpo, held-out data", "reward accuracy, %"] in ("75.0 ± 6.2", "75.0 ± 6.3")


def test_answers_that_became_wrong_come_first(tmp_path):
    (comparison,) = read_run(quickstart(tmp_path), "run").comparisons
    found = groups(comparison)
    assert list(found) == ["became wrong", "became right", "still wrong", "still right"]
    assert [change.prompt for change in found["became wrong"]] == [HOSTILE]
    assert [change.after for change in found["became right"]] == ["answer 2r", "answer 3r"]
    for folder in ("models", "onpolicy"):  # what takes long to draw
        shutil.rmtree(tmp_path / folder)
    text = Elements(render([read_run(tmp_path, "run")])).text
    assert text.index("Became wrong: 1 of 1") < text.index("Became right: 2 of 2") < text.index("Still right: 1 of 1")


def test_ungraded_answers_and_repeated_prompts(tmp_path):
    write(tmp_path / "answers_before.json", [{"prompt": "p", "answer": a} for a in ("one", "two")])
    write(
        tmp_path / "answers_after.json", [{"prompt": p, "answer": a} for p, a in (("p", "one"), ("p", "2"), ("q", ""))]
    )
    (comparison,) = read_run(tmp_path, "run").comparisons
    found = groups(comparison)
    assert [c.before for c in found["changed"]] == ["two"] and [c.before for c in found["unchanged"]] == ["one"]


def test_generations_of_the_first_and_the_last_step(tmp_path):
    lines = [{"step": s, "prompt": "p", "generation": f"g{s}"} for s in (2, 4, 10)]
    write(training(tmp_path) / "generations.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    (comparison,) = read_run(tmp_path, "run").comparisons
    assert (comparison.before, comparison.after) == ("step 2", "step 10")
    assert comparison.changes[0][:3] == ("p", "g2", "g10")


def test_settings_that_differ_come_first(tmp_path):
    runs = [
        read_run(training(tmp_path / name, beta=beta, seed=42, optim="adamw"), name)
        for name, beta in (("a", 2.0), ("b", 10.0))
    ]
    first, same, others = settings_blocks(runs)
    assert first.heading == "Different between the runs"
    assert first.columns == ["a", "b"] and first.rows == [("beta", ["2", "10"])]
    assert same.rows == [("objective", ["simpo"]), ("seed", ["42"])] and others.rows == [("optim", ["adamw"])]
    assert "Different settings: beta." in Elements(render(runs)).text


def test_a_setting_that_one_run_lacks_differs(tmp_path):
    runs = [read_run(training(tmp_path / "a", beta=2.0), "a"), read_run(training(tmp_path / "b"), "b")]
    assert settings_blocks(runs)[0].rows == [("beta", ["2", "\N{EN DASH}"])]


def test_curve_points(tmp_path):
    history = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": float("nan")},
        {"step": 3, "loss": 1.0, "margin": 0.5},
        {"step": 3, "eval_loss": 1.1},
        {"step": 3, "eval_loss": 1.2},
    ]
    run = read_run(training(tmp_path, history), "run")
    (stage,) = run.stages
    assert points(stage, ("loss",), "") == ([1, 3], [2.0, 1.0])
    assert points(stage, ("loss",), "eval_") == ([3], [1.2])
    assert points(stage, ("rewards/margins", "margin"), "") == ([3], [0.5])
    assert any("not a number at 1 logged steps, first at step 2" in warning for warning in warnings_of(run))
    assert any("not finished" in warning for warning in warnings_of(run))
    assert 'alt="Loss: run training 2 to 1; run evaluation 1.2 to 1.2"' in render([run])


def test_means_and_sums_of_log_probabilities_are_drawn_apart(tmp_path):
    runs = []
    for name in ("simpo", "orpo", "dpo"):  # ORPO's are means, too
        folder = training(tmp_path / name)
        config = {"identity": {"objective": name}, "settings": {"beta": 0.1, "dry_run": name == "dpo"}}
        write(folder / "run_config.yaml", yaml.safe_dump(config))
        runs.append(read_run(folder, name))
    ((_, _, drawn),) = curve_sections(runs)
    told = {plot.title: plot.text for plot in drawn if "chosen" in plot.title}
    assert list(told) == ["Log-probability of chosen, mean per token", "Log-probability of chosen, sum"]
    means, sums = told.values()
    assert "simpo" in means and "orpo" in means and "dpo" not in means and "dpo" in sums
    assert "Different settings: objective and 1 more." in Elements(render(runs)).text


def test_logged_lengths_are_drawn(tmp_path):
    run = read_run(training(tmp_path, [{"step": s, "lengths/chosen": 9.0 + s} for s in (1, 2)]), "run")
    assert 'alt="Length: lengths/chosen: run training 10 to 11"' in render([run])


def test_unfinished_training_shows_its_newest_checkpoint(tmp_path):
    training(tmp_path)
    (tmp_path / "trainer_state.json").rename(write(tmp_path / "checkpoint-9/trainer_state.json", {}))
    write(tmp_path / "checkpoint-10/trainer_state.json", {"log_history": [{"step": 10, "loss": 0.5}]})
    (stage,) = read_run(tmp_path, "run").stages
    assert points(stage, ("loss",), "") == ([10], [0.5])


def test_what_data_generation_dropped(tmp_path):
    (data,) = read_run(quickstart(tmp_path), "run").data
    assert data.name == "onpolicy/train" and data.counts == {
        "responses sampled (2 seeds)": 8,
        "responses cut by max_tokens": 2,
        "prompts skipped: too long for the model": 1,
        "prompts dropped: fewer than two different responses": 1,
        "prompts scored": 4,
        "responses without a score": 1,
        "prompts without a pair: no two different scores": 2,
        "prompts without a pair: below min_margin, or by the selection rule": 1,
        "pairs kept": 2,
    }
    assert data.pairs == [(0.5, -1.0, 1, 3), (0.75, 0.25, 4, 2)]  # two pairs of one prompt
    assert data.scores[-1] == [0.2]
    # shares: of the 8 rows that came, of the 6 kept
    assert dropped_rows([read_run(tmp_path, "run")]) == [
        ("simpo: train", ["8", "2 (25.0 %)", "0", "0", "6", "3 (50.0 %)", "0"])
    ]


def test_a_real_run(config, tmp_path, monkeypatch):
    """The files that training writes are the ones that the report reads."""
    from run_simpo import main as train

    path = config(do_eval=True, eval_strategy="steps", eval_steps=2)
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", path])
    train()
    run = read_run(tmp_path / "out", "out")
    page = render([run])
    for title in (
        "Loss",
        "Reward margin",
        "Reward accuracy",
        "Log-probability of chosen",
        "Log-probability of rejected",
    ):
        assert f"<figcaption>{title}</figcaption>" in page
    assert run.stages[0].settings["gamma_beta_ratio"] == 0.5
    assert run.stages[0].data_report["train"]["rows"] == 48
    assert points(run.stages[0], ("rewards/margins",), "eval_")[0] == [2, 4]
    assert warnings_of(run) == []

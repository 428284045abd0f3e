"""What a training prints: one line for each log, in a file without control characters, on a terminal with a bar."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, make_pairs, write_jsonl

import run_preference
import run_reward
import run_sft
import run_simpo
import run_wpo
from simpo.console import progress
from simpo.train.progress import Lines

NUMBER = r" *-?\d+\.\d+"
PAIRS = rf"loss{NUMBER}   margin{NUMBER}   accuracy [01]\.\d\d\d"
RATE, LEFT = r"   rate \d\.\d\de-\d\d", r"   left \d+:\d\d:\d\d"
RUNS = {
    "simpo": (run_simpo.main, {}, PAIRS),
    "sft_weight": (run_simpo.main, {"sft_weight": 0.5}, rf"{PAIRS}   SFT loss{NUMBER}"),
    "wpo": (run_wpo.main, {"gamma_beta_ratio": None}, rf"{PAIRS}   weight [01]\.\d\d\d"),
    "kto": (run_preference.main, {"objective": "kto", "gamma_beta_ratio": None}, PAIRS),
    "sft": (run_sft.main, {}, rf"loss{NUMBER}   token accuracy [01]\.\d\d\d"),
    "reward": (run_reward.main, {}, PAIRS),
}


@pytest.fixture
def printed(config, tmp_path, monkeypatch, capsys):
    """Train for three steps with an evaluation after the second; returns what was printed, and to where."""

    def run(kind: str):
        main, changes, _ = RUNS[kind]
        if kind in ("sft", "reward"):
            changes = dict.fromkeys(("beta", "gamma_beta_ratio", "max_prompt_length"))
        if kind == "sft":
            for split, count in (("train", 16), ("test", 4)):
                rows = [{"messages": row["chosen"]} for row in make_pairs(count)]
                write_jsonl(tmp_path / "sft" / f"{split}.jsonl", rows)
            changes["dataset_mixer"] = {str(tmp_path / "sft"): 1.0}
        path = config(max_steps=3, do_eval=True, eval_strategy="steps", eval_steps=2, bf16=False, **changes)
        monkeypatch.setattr(sys, "argv", ["script.py", path])
        main()
        return capsys.readouterr()

    return run


@pytest.mark.parametrize("kind", RUNS)
def test_one_line_for_each_log(printed, tmp_path, kind):
    out, err = printed(kind)
    columns = RUNS[kind][2]
    lines = out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    evaluations = [line for line in lines if line.startswith("eval ")]
    assert [line[:9] for line in steps] == ["step 1/3 ", "step 2/3 ", "step 3/3 "]
    assert [line[:9] for line in evaluations] == ["eval 2/3 ", "eval 3/3 "]
    assert all(re.fullmatch(rf"step \d/3   {columns}{RATE}{LEFT}", line) for line in steps), steps
    assert all(re.fullmatch(rf"eval \d/3   {columns}", line) for line in evaluations), evaluations
    assert len({line.index("left") for line in steps}) == 1  # aligned
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    full = next(entry for entry in history if "loss" in entry)
    assert f"loss {full['loss']:7.4f} " in steps[0] and {"grad_norm", "epoch"} <= full.keys()
    assert re.search(rf"^trained:    3 steps on \d+ rows in 0:00:\d\d, mean loss{NUMBER}$", out, re.M)
    # no dictionaries, tables, bars, empty lines; at most a screen
    assert not re.search(r"^\*|\{'|[\r\x1b]", out, re.MULTILINE) and "" not in lines and len(lines) < 40
    assert all(line.startswith("warning: ") for line in err.splitlines()), err


def test_a_terminal_has_a_bar_above_which_the_lines_are(printed, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    out, err = printed("simpo")
    assert out.count("\nstep ") == 3 and "loss" not in err and "3/3 [" in err


def test_only_the_main_process_prints(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    state, lines = SimpleNamespace(global_step=1, max_steps=2), Lines()
    lines.on_train_begin(None, state, None)
    lines.on_log(None, state, None, logs={"loss": 1.0})
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    lines.on_log(None, state, None, logs={"loss": 1.0})
    assert capsys.readouterr().out == "step 1/2   loss  1.0000   left 0:00:00\n"


@pytest.mark.parametrize("position", [0, 3])
def test_a_bar_in_a_file_is_whole_lines(capsys, position):
    with progress(2, "engine 0", "response", position=position) as bar:
        for _ in range(2):
            bar.update()
            bar.set_postfix_str("9 tokens/s", refresh=False)
    start, end = capsys.readouterr().err.split("\n")[:-1]
    assert re.fullmatch(r"engine 0: 0 of 2 responses in 00:00", start)
    assert re.fullmatch(r"engine 0: 2 of 2 responses in 00:00, 00:00 left, 9 tokens/s", end)


def test_the_published_files_do_not_ask_for_the_libraries_tables():
    files = list((ROOT / "training_configs").rglob("*.yaml"))
    assert len(files) > 12 and not any("log_level" in path.read_text() for path in files)

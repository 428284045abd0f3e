"""What eval/score.py refuses: one line that names file and row, status 2, nothing written."""

import json
from pathlib import Path

import pytest
from conftest import write_jsonl
from eval_files import annotations, judgment, ratings, write_reference_data

import battles as arena_hard
from score import main


def bad_files() -> dict[str, tuple[str, object, str]]:
    """name: (benchmark, rows or text, words of the error)"""
    twice, out_of_range, gap = annotations(805), annotations(805), annotations(700)
    twice[9]["instruction"] = twice[5]["instruction"]
    out_of_range[7]["preference"] = 3.0
    one_turn = [row for row in ratings() if not (row["question_id"] == 90 and row["turn"] == 2)]
    one_game = judgment("q1", "A>B", "B>A")
    one_game["games"] = one_game["games"][:1]
    two_judges = ratings()
    two_judges[5]["judge"] = ["other", "single-v1"]
    battle = {"question_id": "q", "model_a": arena_hard.BASELINE, "model_b": "mine", "winner": "model_b"}
    return {
        "instruction twice": ("alpacaeval2", twice, "the instruction 'Question 5?' of mine comes twice"),
        "preference": ("alpacaeval2", out_of_range, "row 7: preference is 3.0"),
        "instructions missing": ("alpacaeval2", gap, "700 rows of mine, AlpacaEval 2 has 805"),
        "arena file for alpaca": ("alpacaeval2", [judgment("q", "A>B", "A>B")], "holds Arena-Hard judgments, not"),
        "mt file for arena": ("arenahard", ratings(), "question_id must not be 81"),
        "alpaca file for arena": ("arenahard", annotations(3), "holds AlpacaEval annotations, not"),
        "arena file for mt": ("mt-bench", [judgment("q", "A>B", "A>B")], "holds Arena-Hard judgments, not"),
        "question twice": ("arenahard", [judgment("q", "A>B", "A>B")] * 2, "question q of mine comes twice"),
        "one order": ("arenahard", [one_game], "row 0: games must hold two games"),
        "winner": ("arenahard", [battle | {"winner": "mine"}], "winner is 'mine'"),
        "no baseline": (
            "arenahard",
            [battle, battle | {"model_a": "x", "model_b": "y"}],
            "no model is in every battle",
        ),
        "turn missing": ("mt-bench", one_turn, "turn 2: 1 of 80 questions are missing, first 90"),
        "strange question": ("mt-bench", [*ratings(), *ratings(questions=range(7, 8))], "7 is not among"),
        "two judges": ("mt-bench", two_judges, "graded by gpt-4, other"),
        "empty": ("mt-bench", [], "holds no rows"),
        "cut off": ("mt-bench", '{"question_id": 81, "mod', "line 1: not JSON"),
        "not a gzip": ("mt-bench", "plain text.gz", "cannot be read"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_files(tmp_path, fails, name):
    benchmark, rows, words = bad_files()[name]
    path = tmp_path / ("file.jsonl.gz" if name == "not a gzip" else "file.jsonl")
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    message = fails(main, benchmark, str(path), "--output", str(tmp_path / "out.json"))
    assert words in message and str(path) in message
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bad_command_lines(tmp_path, fails):
    good = str(write_jsonl(tmp_path / "r.jsonl", ratings()))
    assert "required: file" in fails(main, "mt-bench")
    assert "invalid choice: 'mtbench'" in fails(main, "mtbench", good)
    assert "there is no file" in fails(main, "mt-bench", str(tmp_path / "no.jsonl"))
    assert "must end in .json" in fails(main, "mt-bench", good, "--output", str(tmp_path / "out.txt"))
    (tmp_path / "folder.json").mkdir()
    assert "it is a folder" in fails(main, "mt-bench", good, "--output", str(tmp_path / "folder.json"))
    assert "drop --answers" in fails(main, "mt-bench", good, "--answers", good)


def test_missing_reference_data(tmp_path, fails):
    pytest.importorskip("alpaca_eval", reason="alpaca-eval is not installed: pip install -e '.[eval]'")
    (tmp_path / "a.json").write_text(json.dumps(annotations(805)))
    file, reference = str(tmp_path / "a.json"), write_reference_data(tmp_path / "reference")
    assert "name a folder that holds it with --reference_data" in fails(main, "alpacaeval2", file)
    assert "there is no folder" in fails(main, "alpacaeval2", file, "--reference_data", str(tmp_path / "none"))
    (Path(reference) / "df_gamed.csv").unlink()
    assert "holds no file df_gamed*.csv" in fails(main, "alpacaeval2", file, "--reference_data", reference)

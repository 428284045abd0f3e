"""eval/score.py: the recorded numbers, and formulas against independent computations."""

import csv
import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import write_jsonl
from eval_files import annotations, judgment, ratings, write_reference_data

import battles as arena_hard
from benchmarks import alpacaeval2 as alpaca_eval2
from benchmarks import mt_bench
from score import main


@pytest.fixture
def scored(monkeypatch, tmp_path, capsys):
    """Run score.py; returns the JSON it wrote (and checks the PNG)."""

    def run(benchmark: str, file: Path, *options: str) -> dict:
        if benchmark == "alpacaeval2":
            pytest.importorskip("alpaca_eval", reason="alpaca-eval is not installed: pip install -e '.[eval]'")
        output = tmp_path / "scores" / "out.json"
        monkeypatch.setattr("sys.argv", ["score.py", benchmark, str(file), "--output", str(output), *options])
        main()
        assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert sorted(path.name for path in output.parent.iterdir()) == ["out.json", "out.png"]
        run.printed = capsys.readouterr()
        return json.loads(output.read_text())

    return run


def leaderboard(path: Path, column: str) -> dict[str, float]:
    with path.open() as file:
        return {next(iter(row.values())): float(row[column]) for row in csv.DictReader(file)}


def gzipped_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


# --- the recorded numbers


@pytest.mark.parametrize("model", ["FuseChat-Gemma-2-9B-Instruct", "gemma-2b-it", "phi-2"])
def test_alpacaeval2_leaderboard(shared, scored, model):
    folder = shared / "eval_data" / "alpacaeval2"
    scores = scored("alpacaeval2", folder / f"annotations_{model}.json.gz", "--reference_data", str(folder))
    assert list(scores) == [model]
    table = folder / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"
    for key, tolerance in {"win_rate": 1e-6, "standard_error": 1e-6, "length_controlled_winrate": 0.1}.items():
        assert scores[model][key] == pytest.approx(leaderboard(table, key)[model], abs=tolerance)


def test_alpacaeval2_rows_out_of_order(shared, scored, tmp_path):
    """Difficulty goes by position, so a shuffled file must come out the same once the references tell the order."""
    folder = shared / "eval_data" / "alpacaeval2"
    rows = json.loads(gzip.decompress((folder / "annotations_gemma-2b-it.json.gz").read_bytes()))
    in_order = scored("alpacaeval2", folder / "annotations_gemma-2b-it.json.gz", "--reference_data", str(folder))
    random.Random(0).shuffle(rows)
    (tmp_path / "shuffled.json").write_text(json.dumps(rows))
    shuffled = scored("alpacaeval2", tmp_path / "shuffled.json", "--reference_data", str(folder))
    for key in ("win_rate", "length_controlled_winrate", "lc_standard_error"):
        assert shuffled["gemma-2b-it"][key] == pytest.approx(in_order["gemma-2b-it"][key], abs=1e-9)


def test_arena_hard_leaderboard(shared, scored):
    folder = shared / "eval_data" / "arenahard"
    scores = scored(
        "arenahard",
        folder / "battles_official_gpt-4-0613_gpt-3.5-turbo-0125.jsonl.gz",
        "--reference_data",
        str(folder),
    )
    assert scores["gpt-4-0613"]["win_rate"] == pytest.approx(37.90, abs=0.01)
    assert scores["gpt-3.5-turbo-0125"]["win_rate"] == pytest.approx(23.34, abs=0.01)
    low, high = (leaderboard(folder / "leaderboard_20240731.csv", key) for key in ("rating_q025", "rating_q975"))
    for model, score in scores.items():  # bootstrap noise of the bounds: about half a point
        assert score["ci_low"] == pytest.approx(low[model], abs=0.7)
        assert score["ci_high"] == pytest.approx(high[model], abs=0.7)


def test_every_recorded_verdict_is_parsed(shared):
    paths = list((shared / "eval_data" / "arenahard").glob("judgment_*.jsonl.gz"))
    assert paths
    for path in paths:
        games = [game for row in gzipped_lines(path) for game in row["games"]]
        assert games
        assert [arena_hard.parse_verdict(game["judgment"]) for game in games] == [game["score"] for game in games]


def test_every_recorded_rating_is_parsed(shared, scored):
    paths = list((shared / "eval_data" / "mt-bench").glob("*single*.jsonl.gz"))
    assert paths
    for path in paths:
        rows = gzipped_lines(path)
        assert [mt_bench.parse_rating(row["judgment"]) for row in rows] == [row["score"] for row in rows]
        for model, score in scored("mt-bench", path).items():
            valid = [row for row in rows if row["model"] == model and row["score"] != -1]
            assert score["score"] == pytest.approx(sum(row["score"] for row in valid) / len(valid))


# --- formulas


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("My final verdict is tie: [[A=B]].", "A=B"),
        ("[[A>>B]] ... so, again: [[A>>B]]", "A>>B"),
        ("[[A>B]] no, [[B>A]]", None),
        ("Assistant A is better.", None),
        ("I give it a [A>B].", None),
    ],
)
def test_verdicts(text, verdict):
    assert arena_hard.parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "rating"),
    [("Rating: [[7]]", 7), ("[[8.5]] and [[2]]", 8.5), ("Rating: [6]", 6), ("Rating: 6", -1), ("$ERROR$", -1)],
)
def test_ratings(text, rating):
    assert mt_bench.parse_rating(text) == rating


def test_arena_hard_by_hand(tmp_path, scored):
    """Game 1: mine is B. Wins 3 + 1, ties 1, losses 1, none 1 game: (4 + 0.5) / 6."""
    rows = [judgment("q1", "B>>A", "A>B"), judgment("q2", "A=B", "B>A")]
    rows.append(judgment("q3", "A>B", "A>B"))
    rows[2]["games"] = [
        {"user_prompt": "", "judgment": "no label", "score": None},
        {"user_prompt": "", "judgment": "[[A>B]] or [[B>A]]", "score": None},
    ]
    scores = scored("arenahard", write_jsonl(tmp_path / "j.jsonl", rows))
    assert scores["mine"]["win_rate"] == pytest.approx(100 * 4.5 / 6)
    assert scores["mine"]["n_battles"] == 6
    assert "2 of 6 games have no verdict" in scored.printed.err


def test_arena_hard_is_the_bradley_terry_fit():
    """The closed form against the benchmark's own fit: logistic regression on duplicated rows, no penalty."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    noise = np.random.default_rng(0)
    battles = [arena_hard.Battle(str(i), "mine", float(won)) for i, won in enumerate(noise.choice([0, 0.5, 1], 400))]
    wins = [won for battle in battles for won in {0.0: [0, 0], 0.5: [0, 1], 1.0: [1, 1]}[battle.won]]
    features = np.full((len(wins), 1), math.log(10))
    fit = linear_model.LogisticRegression(fit_intercept=False, C=1e12, tol=1e-10).fit(features, wins)
    expected = 100 / (1 + 10 ** -fit.coef_[0][0])
    assert arena_hard.win_rates(battles)["mine"] == pytest.approx(expected, abs=1e-4)


def test_bootstrap_interval_is_the_normal_one():
    """Over many battles the interval is the mean's standard error times 1.96, within sampling noise."""
    noise = np.random.default_rng(1)
    battles = [arena_hard.Battle(str(i), "mine", float(won)) for i, won in enumerate(noise.choice([0, 1], 2000))]
    low, high = arena_hard.bootstrap(battles, rounds=400)["mine"]
    rate = arena_hard.win_rates(battles)["mine"]
    assert low < rate < high
    assert high - low == pytest.approx(2 * 196 * math.sqrt(0.25 / 2000), rel=0.15)


@pytest.fixture
def questions_of(tmp_path):
    def write(rows: list[dict]) -> str:
        path = tmp_path / "questions.json"
        path.write_text(json.dumps([{"instruction": row["instruction"]} for row in rows]))
        return str(path)

    return write


def test_alpacaeval2_of_own_questions(tmp_path, scored, questions_of):
    rows = annotations(40)
    rows[3]["preference"], rows[4]["preference"] = 0, None  # an old spelling of a draw; a reply nobody could read
    (tmp_path / "a.json").write_text(json.dumps(rows))
    scores = scored("alpacaeval2", tmp_path / "a.json", "--questions", questions_of(rows))
    wins = [(row["preference"] or 1.5) - 1 for row in rows if row["preference"] is not None]
    assert scores["mine"]["win_rate"] == pytest.approx(100 * np.mean(wins))
    assert scores["mine"]["standard_error"] == pytest.approx(100 * np.std(wins, ddof=1) / math.sqrt(len(wins)))
    assert scores["mine"]["length_controlled_winrate"] is None
    assert "no length-controlled win rate" in scored.printed.err


def test_length_control_takes_the_effect_of_length_away(tmp_path, scored):
    """A model preferred only for being longer, on average by half a deviation: raw well above 50, LC near it."""
    noise, rows = random.Random(0), annotations(alpaca_eval2.QUESTIONS)
    reference = write_reference_data(tmp_path / "reference")
    longer = [int(noise.gauss(100, 200)) for _ in rows]
    deviation = np.std(longer, ddof=1)
    for row, more in zip(rows, longer, strict=True):
        row["output_1"], row["output_2"] = "x" * 1000, "y" * (1000 + more)
        row["preference"] = 1 + 1 / (1 + math.exp(-2 * math.tanh(more / deviation)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    score = scored("alpacaeval2", tmp_path / "a.json", "--reference_data", reference)["mine"]
    assert score["win_rate"] > 60
    assert score["length_controlled_winrate"] == pytest.approx(50, abs=5)


def test_mt_bench_means(tmp_path, scored):
    rows = ratings()
    rows[0] |= {"score": -1, "judgment": "$ERROR$"}  # question 81, turn 1
    scores = scored("mt-bench", write_jsonl(tmp_path / "r.jsonl", rows))["mine"]
    valid = [row for row in rows if row["score"] != -1]
    assert scores["score"] == pytest.approx(np.mean([row["score"] for row in valid]))
    assert scores["turn_1"] == pytest.approx(np.mean([row["score"] for row in valid if row["turn"] == 1]))
    assert scores["turn_2"] == pytest.approx(np.mean([row["score"] for row in valid if row["turn"] == 2]))
    math_ids = range(111, 121)
    expected = np.mean([row["score"] for row in valid if row["question_id"] in math_ids])
    assert scores["categories"]["math"] == pytest.approx(expected)
    assert scores["n_judgments"] == 159 and scores["n_without_rating"] == 1


def test_answer_lengths_come_from_the_answer_file(tmp_path, scored):
    judged = write_jsonl(tmp_path / "j.jsonl", [judgment("q1", "A>B", "B>A"), judgment("q2", "A=B", "A>B")])
    answers = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {
                "question_id": q,
                "model_id": "mine",
                "choices": [{"index": 0, "turns": [{"content": "", "token_len": n}]}],
            }
            for q, n in (("q1", 10), ("q2", 31))
        ],
    )
    assert scored("arenahard", judged, "--answers", str(answers))["mine"]["avg_length"] == pytest.approx(20.5)


def test_published_rows_stand_beside(tmp_path, scored):
    scored("arenahard", write_jsonl(tmp_path / "j.jsonl", [judgment("q1", "A>B", "B>A")]))
    lines = scored.printed.out.splitlines()
    assert any(line.startswith("* mine") for line in lines)
    assert any("gemma-2-9b-it-SimPO" in line and "59.10" in line and "693" in line for line in lines)

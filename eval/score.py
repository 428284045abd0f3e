"""Turn judgments into the numbers of the tables.

    python eval/score.py alpacaeval2 annotations.json --reference_data data/alpacaeval2 --output scores.json
    python eval/score.py arenahard model_judgment/gpt-4-1106-preview/mine.jsonl --answers model_answer/mine.jsonl
    python eval/score.py mt-bench model_judgment/gpt-4_single.jsonl

FILE (.json or .jsonl, also .gz) is what the official tools write:
    alpacaeval2  annotations: {instruction, output_1, output_2, generator_1, generator_2, preference}
    arenahard    judgments {question_id, model, judge, games: [{judgment, score}, {judgment, score}]}, or battles
                 {question_id, model_a, model_b, winner}
    mt-bench     judgments {question_id, model, judge, turn, judgment, score}

Prints a table beside the published rows; writes --output (default: outputs/scores/BENCHMARK-FILE.json) with one object
per model, and a PNG of the same name. Keys, as they apply: win_rate, standard_error, length_controlled_winrate,
lc_standard_error, ci_low, ci_high (percent), avg_length, score, turn_1, turn_2, categories, n_..., judge.
"""

from pathlib import Path
from typing import Any

from alpaca_eval2 import find_file, score_alpacaeval2
from arena_hard import score_arena_hard
from command_line import ArgumentParser
from mt_bench import score_mt_bench
from published import published_points, published_rows
from records import Row, read_rows
from score_plot import plot_categories, plot_win_rates
from simpo.console import UserError, command, say
from simpo.files import write_json

TITLES = {"alpacaeval2": "AlpacaEval 2", "arenahard": "Arena-Hard v0.1", "mt-bench": "MT-Bench"}
# (heading, key, decimals) of the printed table
COLUMNS: dict[str, list[tuple[str, str, int]]] = {
    "alpacaeval2": [
        ("LC win rate", "length_controlled_winrate", 2),
        ("SE", "lc_standard_error", 2),
        ("win rate", "win_rate", 2),
        ("SE", "standard_error", 2),
        ("length", "avg_length", 0),
    ],
    "arenahard": [
        ("win rate", "win_rate", 2),
        ("2.5 %", "ci_low", 2),
        ("97.5 %", "ci_high", 2),
        ("length", "avg_length", 0),
    ],
    "mt-bench": [("score", "score", 2), ("turn 1", "turn_1", 2), ("turn 2", "turn_2", 2)],
}


@command
def main() -> None:
    args = parse_arguments()
    scores = score(args)
    output = output_path(args)
    write_json(output, scores)
    draw(args, scores, output.with_suffix(".png"))
    print_table(args.benchmark, scores)
    say(f"\nwrote {output} and {output.with_suffix('.png')}")


def parse_arguments() -> Any:
    parser = ArgumentParser(__doc__)
    parser.add_argument("benchmark", choices=list(TITLES))
    parser.add_argument("file", help="annotations, judgments or battles; may be .gz")
    parser.add_argument(
        "--reference_data",
        help="folder with df_gamed*.csv and instruction_difficulty*.csv (AlpacaEval 2; else downloaded from the hub), "
        "alpaca_eval_gpt4_baseline.json to check the order of rows, or Arena-Hard's leaderboard*.csv for the plot",
    )
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--questions", help="the questions that were judged, when not the benchmark's own")
    parser.add_argument("--answers", help="Arena-Hard: the model's answers, for their mean length in tokens")
    args = parser.parse_args()
    if args.answers and args.benchmark != "arenahard":
        raise UserError("answers: only Arena-Hard's judgments need the answer file for lengths; drop --answers")
    return args


def score(args: Any) -> dict[str, Row]:
    """{model: its numbers}.

    Raises:
        UserError: the file is not this benchmark's, or has gaps; names file and row.
    """
    if args.benchmark == "alpacaeval2":
        return score_alpacaeval2(args.file, args.questions, args.reference_data)
    if args.benchmark == "mt-bench":
        return score_mt_bench(args.file, args.questions)
    if args.reference_data:
        find_file(args.reference_data, "leaderboard*.csv", needed=False)
    scores, lengths = score_arena_hard(args.file, args.questions), answer_lengths(args.answers)
    if args.answers and not lengths.keys() & scores.keys():
        raise UserError(f"answers: {args.answers} holds answers of {', '.join(lengths)}, not of {', '.join(scores)}")
    return {model: row | {"avg_length": lengths.get(model)} for model, row in scores.items()}


def answer_lengths(path: str | None) -> dict[str, float]:
    """{model: mean answer length in tokens} of a file of Arena-Hard answers that carry token_len."""
    if path is None:
        return {}
    lengths: dict[str, list[int]] = {}
    for number, row in enumerate(read_rows(path, {"model_id": str, "choices": list}, "Arena-Hard answers")):
        try:
            lengths.setdefault(row["model_id"], []).append(int(row["choices"][0]["turns"][0]["token_len"]))
        except (LookupError, TypeError) as error:
            raise UserError(f"answers: {path}, row {number}: has no choices[0].turns[0].token_len") from error
    return {model: sum(values) / len(values) for model, values in lengths.items()}


def output_path(args: Any) -> Path:
    """The JSON file to write, in a folder that exists.

    Raises:
        UserError: it has another ending, or its folder cannot be made.
    """
    stem = Path(args.file).name.split(".json")[0]
    path = Path(args.output or f"outputs/scores/{args.benchmark}-{stem}.json")
    if path.suffix != ".json":
        raise UserError(f"output: {path} must end in .json (the PNG gets the same name)")
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".tmp").touch()
    except OSError as error:
        raise UserError(f"output: {path} cannot be written: {error}") from error
    return path


def print_table(benchmark: str, scores: dict[str, Row]) -> None:
    """Print the scores (marked *) among the published rows, best first."""
    columns, first = COLUMNS[benchmark], COLUMNS[benchmark][0][1]
    rows = [(f"* {model}", row) for model, row in scores.items()]
    rows += [(f"  {name}", row) for name, row in published_rows(benchmark).items()]
    rows.sort(key=lambda item: -(item[1].get(first) or item[1].get("win_rate") or 0))
    width = max(len(name) for name, _ in rows)
    say(f"{TITLES[benchmark]} (* this file; the rest published)" if len(rows) > len(scores) else TITLES[benchmark])
    say(" " * width + "".join(f"{heading:>13}" for heading, _, _ in columns))
    for name, row in rows:
        say(f"{name:{width}}" + "".join(f"{cell(row.get(key), decimals):>13}" for _, key, decimals in columns))
    for model, row in scores.items():
        if "categories" in row:
            means = ", ".join(f"{category} {cell(value, 2)}" for category, value in row["categories"].items())
            say(f"{model}: {means}")


def cell(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def draw(args: Any, scores: dict[str, Row], path: Path) -> None:
    title = TITLES[args.benchmark]
    if args.benchmark == "mt-bench":
        plot_categories(path, title, scores)
    else:
        unit = "characters" if args.benchmark == "alpacaeval2" else "tokens"
        plot_win_rates(path, title, scores, published_points(args.benchmark, args.reference_data), unit)


if __name__ == "__main__":
    main()

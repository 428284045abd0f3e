"""Turn judgments into the numbers of the tables.

    python eval/score.py alpacaeval2 annotations.json --reference_data data/alpacaeval2 --output scores.json
    python eval/score.py arenahard model_judgment/gpt-4-1106-preview/mine.jsonl --answers model_answer/mine.jsonl
    python eval/score.py mt-bench model_judgment/gpt-4_single.jsonl

FILE (.json or .jsonl, also .gz) is what the official tools write:
    alpacaeval2  annotations: {instruction, output_1, output_2, generator_1, generator_2, preference}
    arenahard    judgments {question_id, model, judge, games: [{judgment, score}, {judgment, score}]}, or today's {uid,
                 category, model, games}, or battles {question_id, model_a, model_b, winner}
    mt-bench     judgments {question_id, model, judge, turn, judgment, score}

Prints a table beside the published rows; writes --output (default: outputs/scores/BENCHMARK-FILE.json) with one object
per model, and a PNG of the same name. Keys, as they apply: win_rate, standard_error, length_controlled_winrate,
lc_standard_error, ci_low, ci_high (percent), avg_length, score, turn_1, turn_2, categories, n_..., judge.
"""

from pathlib import Path
from typing import Any

from benchmarks import find, names
from benchmarks.base import Benchmark
from parts import ScoreFiles
from records import Row
from score_plot import plot_bars, plot_win_rates
from simpo.console import ArgumentParser, UserError, command, say
from simpo.files import write_json


@command
def main() -> None:
    args = parse_arguments()
    benchmark = find(args.benchmark)
    files = ScoreFiles(args.file, args.questions, args.reference_data, args.answers)
    scores = benchmark.score(files)
    output = output_path(args)
    write_json(output, scores)
    draw(benchmark, files, scores, output.with_suffix(".png"))
    print_table(benchmark, scores)
    say(f"\nwrote {output} and {output.with_suffix('.png')}")


def parse_arguments() -> Any:
    parser = ArgumentParser(__doc__)
    parser.add_argument("benchmark", choices=names())
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
    for option in ("reference_data", "questions", "answers"):
        if getattr(args, option) and option not in find(args.benchmark).score_options:
            raise UserError(f"{option}: the score of {args.benchmark} reads no such file; drop --{option}")
    return args


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
        if path.is_dir() or path.with_suffix(".png").is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".tmp").touch()
    except OSError as error:
        raise UserError(f"output: {path} cannot be written: {error}") from error
    return path


def print_table(benchmark: Benchmark, scores: dict[str, Row]) -> None:
    """Print the scores (marked *) among the published rows, best first."""
    columns, first = benchmark.columns, benchmark.columns[0][1]
    rows = [(f"* {model}", row) for model, row in scores.items()]
    rows += [(f"  {name}", row) for name, row in benchmark.published_rows().items()]
    rows.sort(key=lambda item: -(item[1].get(first) or item[1].get("win_rate") or 0))
    width = max(len(name) for name, _ in rows)
    title = benchmark.title
    say(f"{title} (* this file; the rest published)" if len(rows) > len(scores) else title)
    say(" " * width + "".join(f"{heading:>13}" for heading, _, _ in columns))
    for name, row in rows:
        say(f"{name:{width}}" + "".join(f"{cell(row.get(key), decimals):>13}" for _, key, decimals in columns))
    for model, row in scores.items():
        if "categories" in row:
            means = ", ".join(f"{category} {cell(value, 2)}" for category, value in row["categories"].items())
            say(f"{model}: {means}")


def cell(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def draw(benchmark: Benchmark, files: ScoreFiles, scores: dict[str, Row], path: Path) -> None:
    """Win rates against answer lengths, or bars of what there is."""
    if all("win_rate" in score for score in scores.values()):
        plot_win_rates(path, benchmark.title, scores, benchmark.published_points(files), benchmark.length_unit)
    else:
        plot_bars(path, benchmark.title, {model: benchmark.bars(score) for model, score in scores.items()})


if __name__ == "__main__":
    main()

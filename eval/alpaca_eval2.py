"""AlpacaEval 2: annotations to raw and length-controlled win rates, by the alpaca-eval package's own functions.

The length-controlled win rate (Dubois et al. 2024) is a logistic regression over the 805 instructions. The package
looks an instruction's difficulty up by the ROW it stands in, so order matters, and only these 805 can be scored.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from records import Row, read_rows, refuse_gaps, refuse_repeats, shorten
from simpo.console import UserError, warn

if TYPE_CHECKING:
    import pandas as pd

BASELINE, ANNOTATOR = "gpt4_1106_preview", "weighted_alpaca_eval_gpt4_turbo"
QUESTIONS = 805
MOST_MISSING = 8  # published annotations lack up to three rows, where the judge's reply could not be read
ANNOTATION_FIELDS = {
    "instruction": str,
    "output_1": str,
    "output_2": str,
    "generator_1": str,
    "generator_2": str,
    "preference": (int, float, type(None)),
}
HUB_FILES = ("df_gamed.csv", "instruction_difficulty.csv")
INSTALL = "alpaca-eval is not installed: pip install -e '.[eval]'"


def read_annotations(path: str, questions: str | None, reference_data: str | None) -> dict[str, list[Row]]:
    """Read annotations of one or more models, in the order of the benchmark.

    Args:
        questions: a file with the instructions that were annotated; the benchmark's own 805 when None.
        reference_data: folder that may hold alpaca_eval_gpt4_baseline.json, which knows the order.

    Returns:
        {model: rows}.

    Raises:
        UserError: not annotations; an instruction comes twice, is unknown or missing; a preference is out of range.
    """
    rows = read_rows(path, ANNOTATION_FIELDS, "AlpacaEval annotations")
    for number, row in enumerate(rows):
        preference = row["preference"]
        if preference is not None and preference == preference and preference != 0 and not 1 <= preference <= 2:
            raise UserError(
                f"{path}, row {number}: preference is {preference}, must lie between 1 (baseline) and 2 (model)"
            )
    order = known_order(questions, reference_data)
    models = by_model(rows)
    for model, own in models.items():
        refuse_repeats(path, [row["instruction"] for row in own], f"the instruction {{!r}} of {model}")
        check_coverage(path, model, own, order, exact=questions is not None)
        check_judging(model, own)
        place = {instruction: number for number, instruction in enumerate(order or [])}
        if all(row["instruction"] in place for row in own):
            own.sort(key=lambda row: place[row["instruction"]])
    return models


def by_model(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by generator_2; rows that never repeat an instruction are one model's, whatever its rows call it."""
    names = Counter(row["generator_2"] for row in rows)
    if len({row["instruction"] for row in rows}) == len(rows):
        return {names.most_common(1)[0][0]: rows}
    return {name: [row for row in rows if row["generator_2"] == name] for name in names}


def known_order(questions: str | None, reference_data: str | None) -> list[str] | None:
    """The benchmark's instructions in order, or None when no file tells."""
    path: Path | str | None = questions
    if path is None and reference_data is not None:
        path = find_file(reference_data, "alpaca_eval_gpt4_baseline*.json*", needed=False)
    if path is None:
        return None
    return [row["instruction"] for row in read_rows(path, {"instruction": str}, "AlpacaEval instructions")]


def check_coverage(path: str, model: str, rows: list[Row], order: list[str] | None, exact: bool) -> None:
    """Raise a UserError when rows are missing beyond what the published annotations lack; warn below that."""
    count, found = len(order or range(QUESTIONS)), [row["instruction"] for row in rows]
    remedy = "judge the rest, or name the file of your own instructions with --questions"
    known = len(set(found) & set(order or found))
    if order is not None and (exact or known < count - MOST_MISSING):
        refuse_gaps(path, found, order, remedy)
    if not count - MOST_MISSING <= len(rows) <= count:
        raise UserError(f"{path}: {len(rows)} rows of {model}, AlpacaEval 2 has {count} instructions; {remedy}")
    if order is not None and known < len(rows):
        warn(f"{model}: {len(rows) - known} instructions are not the benchmark's; rows stay in the file's order")
    if len(rows) < count:
        warn(f"{model}: {count - len(rows)} of {count} instructions are missing, as in some published annotations")


def check_judging(model: str, rows: list[Row]) -> None:
    """Warn when the numbers will not compare with the published ones: another baseline, another judge, gaps."""
    if others := sorted({row["generator_1"] for row in rows} - {BASELINE}):
        warn(f"{model}: judged against {', '.join(others)}; the published win rates are against {BASELINE}")
    if others := sorted({row.get("annotator") or ANNOTATOR for row in rows} - {ANNOTATOR}):
        warn(f"{model}: judged by {', '.join(others)}; the published win rates are {ANNOTATOR}'s")
    if dropped := sum(row["preference"] is None or row["preference"] != row["preference"] for row in rows):
        warn(f"{model}: {dropped} rows without a preference are left out of the raw win rate")


def score_alpacaeval2(path: str, questions: str | None, reference_data: str | None) -> dict[str, Row]:
    """Scores of every model in a file of annotations.

    Returns:
        {model: {win_rate, standard_error, length_controlled_winrate, lc_standard_error (all in percent; the two
        length-controlled ones None for instructions of one's own), ci_low, ci_high (win_rate -+ 1.96 standard
        errors), avg_length (characters), n_wins, n_wins_base, n_draws, n_total, discrete_win_rate, judge}}.

    Raises:
        UserError: see `read_annotations`; or alpaca-eval or the files it needs are missing.
    """
    models = read_annotations(path, questions, reference_data)
    try:
        import pandas as pd
        from alpaca_eval import metrics
    except ImportError as error:
        raise UserError(INSTALL) from error
    scores = {}
    for model, rows in models.items():
        frame = pd.DataFrame(rows)
        for column in ("generator_1", "generator_2"):
            frame[column] = frame[column].mode()[0]  # the package takes exactly one
        if QUESTIONS - MOST_MISSING <= len(rows) <= QUESTIONS:
            with hub_files(reference_data):
                numbers = metrics.get_length_controlled_winrate(frame, save_weights_dir=None)
        else:
            warn(f"{model}: no length-controlled win rate, which exists for the benchmark's own instructions only")
            numbers = metrics.get_winrate(frame) | {"length_controlled_winrate": None, "lc_standard_error": None}
        scores[model] = (
            plain_numbers(numbers)
            | interval(numbers)
            | {
                "avg_length": int(frame["output_2"].str.len().mean()),
                "judge": ", ".join(sorted({row.get("annotator") or ANNOTATOR for row in rows})),
            }
        )
    return scores


def interval(numbers: dict[str, Any]) -> Row:
    """The 95 % interval of the raw win rate, in percent, from its standard error."""
    half = 1.96 * numbers["standard_error"]
    return {"ci_low": float(numbers["win_rate"] - half), "ci_high": float(numbers["win_rate"] + half)}


def plain_numbers(numbers: dict[str, Any]) -> Row:
    """NumPy numbers as Python's, which JSON can write."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in numbers.items()}


@contextmanager
def hub_files(reference_data: str | None) -> Iterator[None]:
    """Let the package find the two files it would download, when a folder has them.

    Raises:
        UserError: the folder lacks one, or the hub cannot be reached.
    """
    from alpaca_eval.metrics import glm_winrate
    from huggingface_hub.errors import HfHubHTTPError

    download = glm_winrate.hf_hub_download
    if reference_data is not None:
        files = {name: find_file(reference_data, name.replace(".csv", "*.csv")) for name in HUB_FILES}
        glm_winrate.hf_hub_download = lambda **request: str(files[request["filename"]])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn announces changes of 1.10, which is not allowed here
            yield
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"{HUB_FILES[0]} of the dataset tatsu-lab/alpaca_eval cannot be downloaded ({shorten(str(error))}); name "
            "a folder that holds it with --reference_data"
        ) from error
    finally:
        glm_winrate.hf_hub_download = download


def find_file(folder: str, pattern: str, needed: bool = True) -> Path | None:
    """The one file of a folder whose name fits the pattern.

    Raises:
        UserError: no such folder, several files fit, or none although it is needed.
    """
    if not Path(folder).is_dir():
        raise UserError(f"reference_data: there is no folder {folder}")
    found = sorted(Path(folder).glob(pattern))
    if len(found) > 1:
        raise UserError(f"reference_data: {folder} holds several files {pattern}: keep one")
    if needed and not found:
        raise UserError(f"reference_data: {folder} holds no file {pattern}")
    return found[0] if found else None


def leaderboard() -> "pd.DataFrame":
    """The package's own leaderboard: one row per published model, indexed by its name."""
    import alpaca_eval
    import pandas as pd

    folder = Path(alpaca_eval.__file__).parent / "leaderboards" / "data_AlpacaEval_2"
    return pd.read_csv(folder / f"{ANNOTATOR}_leaderboard.csv", index_col=0)

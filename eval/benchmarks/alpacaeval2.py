"""AlpacaEval 2: 805 instructions; a judge compares each answer with the baseline's, by the alpaca-eval package's own
annotators, and the package's length-controlled win rate (Dubois et al. 2024).

That is a logistic regression over the 805 instructions. The package looks an instruction's difficulty up by the ROW it
stands in, so order matters, and only these 805 can be scored.
"""

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from alpaca_package import INSTALL, Annotator, leaderboard, length_controlled, raw
from benchmarks.base import Benchmark, notes
from decoding import Settings, checked, checked_engine, refuse_unknown
from parts import AnswerFiles, JudgeFiles, Judging, Question, ScoreFiles
from published import Point
from records import Row, find_file, read_rows, refuse_gaps, refuse_repeats
from simpo.config import read_yaml
from simpo.console import UserError, warn
from simpo.files import write_json
from simpo.judge.tasks import Outcome, Reading, Task

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
DO_SAMPLE = "do_sample"


class AlpacaEval2(Benchmark):
    title = "AlpacaEval 2"
    hub = ("tatsu-lab/alpaca_eval", "dataset", "alpaca_eval_gpt4_baseline.json")
    question_fields = {"instruction": str}
    answer_fields = {"instruction": str, "output": str, "generator": str}
    decoding = {"temperature": 0.0, "max_tokens": 2048}
    needs = ("references",)
    columns = [
        ("LC win rate", "length_controlled_winrate", 2),
        ("SE", "lc_standard_error", 2),
        ("win rate", "win_rate", 2),
        ("SE", "standard_error", 2),
        ("length", "avg_length", 0),
    ]
    published = {
        "length_controlled_winrate": "alpacaeval2_lc",
        "win_rate": "alpacaeval2_wr",
        "avg_length": "alpacaeval2_length",
    }
    length_unit = "characters"
    score_options = ("questions", "reference_data")

    def question(self, row: Row) -> Question:
        return Question(row["instruction"], [row["instruction"]], row)

    def has_config(self, path: str) -> bool:
        if not path.endswith((".yaml", ".yml")):
            return False
        return any(isinstance(entry, dict) and "completions_kwargs" in entry for entry in read_yaml(path).values())

    def read_settings(self, path: str) -> Settings:
        """alpaca-eval's model YAML."""
        content = read_yaml(path)
        if len(content) != 1 or not isinstance(entry := next(iter(content.values())), dict):
            raise UserError(
                f"{path}: an AlpacaEval configuration has one key, the generator's name, with settings below"
            )
        known = {"prompt_template", "fn_completions", "completions_kwargs", "pretty_name", "link", DO_SAMPLE}
        refuse_unknown(path, entry, known)
        for key, kind in (("prompt_template", str), ("completions_kwargs", dict)):
            if not isinstance(entry.get(key), kind):
                raise UserError(f"{path}: has no {key}; is it an AlpacaEval configuration?")
        kwargs = dict(entry["completions_kwargs"])
        kwargs.pop("model_name", None)
        kwargs.pop("batch_size", None)  # the engine's own matter
        engine, in_kwargs = kwargs.pop("model_kwargs", None) or {}, kwargs.pop(DO_SAMPLE, False)
        if "max_new_tokens" in kwargs:
            kwargs["max_tokens"] = kwargs.pop("max_new_tokens")
        if not isinstance(engine, dict):
            raise UserError(f"{path}: model_kwargs must hold settings, found {engine!r}")
        return Settings(
            name=str(next(iter(content))),
            decoding=checked(path, kwargs),
            engine=checked_engine(path, engine),
            prompt_template=read_template(Path(path), entry["prompt_template"]),
            do_sample=bool(entry.get(DO_SAMPLE, in_kwargs)),
        )

    # --- answer files: a JSON list of {dataset, instruction, output, generator}

    def files(self, folder: Path, name: str) -> AnswerFiles:
        return AnswerFiles(folder / name / "model_outputs.json", folder / name / "settings.json", folder / name)

    def answer_row(self, name: str, question: Question, texts: list[str], time: float, count: Any) -> Row:
        row = {"dataset": question.row.get("dataset", ""), "instruction": question.key}
        return row | {"output": texts[0].strip(), "generator": name}

    def write_answers(self, path: Path, rows: list[Row]) -> None:
        write_json(path, rows)

    def answer(self, row: Row) -> tuple[str, str, list[str]]:
        return row["instruction"], row["generator"], [row["output"]]

    # --- judging

    def judging(self, files: JudgeFiles) -> Judging:
        """The package's prompt for each pair of outputs that differ, in the references' order."""
        other_rows = {row["instruction"]: row for row in self.answer_rows(files.references)}
        questions = [self.question(row) for row in other_rows.values()]
        model, answers = self.read_answers(files.answers, questions, files.thinking)
        _, others = self.read_answers(files.references, questions, files.thinking)
        own_rows = {row["instruction"]: row for row in self.answer_rows(files.answers)}
        own = [own_rows[key] | {"output": answers[key][0]} for key in others]
        references = [other_rows[key] | {"output": others[key][0]} for key in others]
        annotator = Annotator(files.judge_prompts or ANNOTATOR)
        prompts = annotator.prompts(references, own)

        def rows(outcomes: dict[Any, Outcome], judge: str) -> list[Row]:
            found = {key: outcomes[key, 1] for key in prompts}
            completions = {key: completion(outcome) for key, outcome in found.items()}
            made = annotator.annotations(references, own, completions)
            return [finish(row, found.get(row["instruction"])) for row in made]

        return Judging(
            model,
            tasks=[Task(key, 1, messages) for key, messages in prompts.items()],
            parameters=annotator.parameters,
            rows=rows,
            reading=Reading(may_be_cut=bool(annotator.parameters.get("logprobs"))),  # only the first token counts
            judge_name=annotator.name,
            record={"annotator": annotator.name},
        )

    def judgment_files(self, folder: Path, judge: str, model: str) -> AnswerFiles:
        output = folder / model / judge / "annotations.json"
        return AnswerFiles(output, output.with_name("settings.json"), folder / "judging" / judge / model)

    def write_judgments(self, path: Path, rows: list[Row]) -> None:
        write_json(path, rows)

    # --- score

    def score(self, files: ScoreFiles) -> dict[str, Row]:
        """Scores of every model in a file of annotations.

        Returns:
            {model: {win_rate, standard_error, length_controlled_winrate, lc_standard_error (all in percent; the two
            length-controlled ones None for instructions of one's own), ci_low, ci_high (win_rate -+ 1.96 standard
            errors), avg_length (characters), n_wins, n_wins_base, n_draws, n_total, discrete_win_rate, judge}}.

        Raises:
            UserError: see `read_annotations`; or alpaca-eval or the files it needs are missing.
        """
        models = read_annotations(files.judgments, files.questions, files.reference_data)
        try:
            import pandas as pd
        except ImportError as error:
            raise UserError(INSTALL) from error
        scores = {}
        for model, rows in models.items():
            frame = pd.DataFrame(rows)
            for column in ("generator_1", "generator_2"):
                frame[column] = frame[column].mode()[0]  # the package takes exactly one
            if QUESTIONS - MOST_MISSING <= len(rows) <= QUESTIONS:
                numbers = length_controlled(frame, files.reference_data)
            else:
                warn(f"{model}: no length-controlled win rate, which exists for the benchmark's own instructions only")
                numbers = raw(frame) | {"length_controlled_winrate": None, "lc_standard_error": None}
            half = 1.96 * numbers["standard_error"]
            scores[model] = numbers | {
                "ci_low": float(numbers["win_rate"] - half),
                "ci_high": float(numbers["win_rate"] + half),
                "avg_length": int(frame["output_2"].str.len().mean()),
                "judge": ", ".join(sorted({row.get("annotator") or ANNOTATOR for row in rows})),
            }
        return scores

    def published_points(self, files: ScoreFiles) -> list[Point]:
        """AlpacaEval's own leaderboard."""
        frame = leaderboard(ANNOTATOR).dropna(subset=["length_controlled_winrate"])
        return [Point(str(n), r["avg_length"], r["length_controlled_winrate"]) for n, r in frame.iterrows()]


def read_template(config: Path, template: str) -> str:
    """The prompt's text: as given, or of a file beside the configuration, in its parent, or in the current folder.

    Raises:
        UserError: no such file, or no place for the instruction in it.
    """
    text = template
    if "{instruction}" not in template:
        places = [folder / template for folder in (config.parent, config.parent.parent, Path())]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise UserError(f"{config}: prompt_template: there is no file {template} beside it or in the folder above")
        text = file.read_text(encoding="utf-8")
    if text.count("{instruction}") != 1:
        raise UserError(f"{config}: prompt_template: {template} must hold {{instruction}} exactly once")
    return text


def completion(outcome: Outcome) -> Row:
    """A reply as the package's own client returns it; an empty one is none."""
    if outcome.failed:
        return {"text": ""}
    reply = outcome.replies[-1]
    choice = {"finish_reason": reply.get("finish_reason"), "index": 0, "logprobs": reply.get("logprobs")}
    choice["message"] = {"content": reply["content"], "role": "assistant"}
    return choice | {"text": reply["content"], "total_tokens": (reply.get("usage") or {}).get("total_tokens")}


def finish(row: Row, outcome: Outcome | None) -> Row:
    """A row of the package with the time of its reply, and why there is none; pairs that do not differ have none."""
    if outcome is None:
        return row
    said = {"preference_date": datetime.fromtimestamp(outcome.replies[-1]["time"]).isoformat()}
    return row | said | {key: value for key, value in notes(outcome).items() if key == "failed"}


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
    if not any(row["preference"] for row in rows):
        raise UserError(f"{model}: no row holds a preference")
    if dropped := sum(row["preference"] is None or row["preference"] != row["preference"] for row in rows):
        warn(f"{model}: {dropped} rows without a preference are left out of the raw win rate")

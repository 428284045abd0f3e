"""AlpacaEval's judging: the alpaca-eval package's own annotator, asked batch by batch so that a kill loses little."""

import logging
from pathlib import Path
from typing import Any

import yaml
from alpaca_eval2 import ANNOTATOR, INSTALL
from judge_client import RETRIES, Endpoint, failures

from records import Row, read_rows, refuse_gaps, refuse_repeats
from simpo.config import read_yaml
from simpo.console import UserError
from simpo.folder import Journal

OUTPUT_FIELDS = {"instruction": str, "output": str, "generator": str}


def read_outputs(path: str, what: str) -> dict[str, Row]:
    """{instruction: row} of a file of model outputs.

    Raises:
        UserError: another kind of file, an instruction twice, or several models.
    """
    rows = read_rows(path, OUTPUT_FIELDS, what)
    refuse_repeats(path, [row["instruction"] for row in rows], "the instruction {!r}")
    names = sorted({row["generator"] for row in rows})
    if len(names) > 1:
        raise UserError(f"{path}: holds outputs of several models ({', '.join(names)}); judge each model's own file")
    return {row["instruction"]: row for row in rows}


def read_pairs(answers: str, references: str) -> tuple[str, list[Row], list[Row]]:
    """The model's name, its outputs and the reference outputs, both in the references' order.

    Raises:
        UserError: see `read_outputs`; or the two files do not hold the same instructions.
    """
    own, other = read_outputs(answers, "AlpacaEval model outputs"), read_outputs(references, "reference outputs")
    refuse_gaps(answers, own, other, "generate the rest, or name the matching file with --references")
    return next(iter(own.values()))["generator"], [own[key] for key in other], list(other.values())


def annotator_config(judge_prompts: str | None, endpoint: Endpoint) -> tuple[str, dict[str, Any]]:
    """The annotator's name and its configuration, pointed at the endpoint.

    Args:
        judge_prompts: name of one of the package's annotators, or the path of a configs.yaml; the leaderboard's own
            when None.

    Raises:
        UserError: alpaca-eval is missing, or there is no such annotator.
    """
    try:
        from alpaca_eval import constants
    except ImportError as error:
        raise UserError(INSTALL) from error
    name = judge_prompts or ANNOTATOR
    path = Path(name) if Path(name).is_file() else constants.EVALUATORS_CONFIG_DIR / name / "configs.yaml"
    if not path.is_file():
        raise UserError(f"judge_prompts: {name} is no file and none of alpaca-eval's annotators")
    content = read_yaml(str(path))
    annotator, entry = next(iter(content.items()))
    if not isinstance(entry, dict) or not {"prompt_template", "completions_kwargs"} <= entry.keys():
        raise UserError(f"judge_prompts: {path} is no configuration of an alpaca-eval annotator")
    template = path.parents[1] / entry["prompt_template"]  # where the package looks for it
    kwargs = {
        "model_name": endpoint.model,
        "requires_chatml": True,
        "num_procs": endpoint.concurrency,
        "client_kwargs": {"max_retries": RETRIES, "timeout": endpoint.timeout},
    }
    if endpoint.base_url is not None:
        kwargs["openai_api_base"] = endpoint.base_url
    entry = entry | {"prompt_template": str(template), "completions_kwargs": entry["completions_kwargs"] | kwargs}
    return annotator, {annotator: entry}


def annotate(
    config: dict[str, Any], work: Path, own: list[Row], references: list[Row], endpoint: Endpoint, journal: Journal
) -> None:
    """Ask for the preferences between pairs, `concurrency` at a time; keep each batch as it comes.

    An empty reply, which is what the package makes of a server that went on failing, is not kept.

    Args:
        work: folder for the annotator's configuration, which the package reads from a file.

    Raises:
        UserError: the endpoint refuses or cannot be reached; or replies stayed empty.
    """
    from alpaca_eval.annotators import PairwiseAnnotator
    from tqdm import tqdm

    logging.getLogger().setLevel(logging.ERROR)  # the package tells of every batch
    file = work / next(iter(config)) / "configs.yaml"  # the package names the annotator by the folder
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    annotator = PairwiseAnnotator(annotators_config=file.resolve(), caching_path=None)
    empty = 0
    with tqdm(total=len(own), desc="AlpacaEval", unit="judgment", smoothing=0) as bar:
        for start in range(0, len(own), endpoint.concurrency):
            batch = slice(start, start + endpoint.concurrency)
            with failures(endpoint):
                rows = annotator.annotate_head2head(outputs_1=references[batch], outputs_2=own[batch])
            kept = [without_nan(row) for row in rows if is_kept(row)]
            journal.append(*kept)
            empty += len(rows) - len(kept)
            bar.update(len(rows))
    if empty:
        raise UserError(f"{empty} replies were empty; the other replies are kept, and the same command asks again")


def is_kept(row: Row) -> bool:
    """Whether a row holds a preference, or a reply from which none could be read (as some published rows)."""
    preference, raw = row["preference"], row.get("preference_raw_completion")
    has_text = isinstance(raw, dict) and bool((raw.get("text") or "").strip())
    return has_text or (preference is not None and preference == preference)


def without_nan(row: Row) -> Row:
    """The row with null for what is not a number, which JSON cannot write."""
    return {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}

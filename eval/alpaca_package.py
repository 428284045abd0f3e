"""The alpaca-eval package, without its downloads, its writing into itself and its own client: its annotators' prompts
and parsers, its length-controlled win rate, its leaderboard."""

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from records import Row, find_file, shorten
from simpo.config import read_yaml
from simpo.console import UserError

if TYPE_CHECKING:
    import pandas as pd

INSTALL = "alpaca-eval is not installed: pip install -e '.[eval]'"
HUB_FILES = ("df_gamed.csv", "instruction_difficulty.csv")
# settings of the package's own client, which are no parameters of a request
OWN_KEYS = ("model_name", "requires_chatml", "is_chat", "num_procs", "batch_size", "price_per_token", "client_kwargs")
# What the package would read as its own marks in an answer: the places of its prompts and ChatML's borders.
MARKS = {"{": "\ue000", "<|im_start|>": "\ue001", "<|im_end|>": "\ue002"}
NUMBER = "\ue003"


class Annotator:
    """One of the package's annotators: prompts that compare two outputs, and preferences from the replies.

    Args:
        judge_prompts: name of one of the package's annotators, or the path of a configs.yaml.

    Attributes:
        name: the annotator's.
        parameters: of the request, as its configuration says: temperature, max_tokens, logprobs, ...

    Raises:
        UserError: alpaca-eval is missing, or there is no such annotator.
    """

    def __init__(self, judge_prompts: str):
        try:
            from alpaca_eval import constants
        except ImportError as error:
            raise UserError(INSTALL) from error
        path = Path(judge_prompts)
        if not path.is_file():
            path = constants.EVALUATORS_CONFIG_DIR / judge_prompts / "configs.yaml"
        if not path.is_file():
            raise UserError(f"judge_prompts: {judge_prompts} is no file and none of alpaca-eval's annotators")
        content = read_yaml(str(path))
        self.name, self.entry = next(iter(content.items()), ("", None))
        if not isinstance(self.entry, dict) or not {"prompt_template", "completions_kwargs"} <= self.entry.keys():
            raise UserError(f"judge_prompts: {path} is no configuration of an alpaca-eval annotator")
        if self.entry.get("fn_completions", "openai_completions") != "openai_completions":
            raise UserError(
                f"judge_prompts: {self.name} is not for OpenAI-compatible endpoints (fn_completions: "
                f"{self.entry['fn_completions']})"
            )
        if self.entry.get("batch_size", 1) != 1:
            raise UserError(f"judge_prompts: {self.name} asks about several pairs at once; choose another annotator")
        template = path.resolve().parents[1] / str(self.entry["prompt_template"])  # where the package looks for it
        kwargs = self.entry["completions_kwargs"]
        if not template.is_file() or not isinstance(kwargs, dict):
            raise UserError(f"judge_prompts: {path}: there is no prompt_template {template}, or no completions_kwargs")
        self.entry = self.entry | {"prompt_template": str(template)}
        self.parameters = {key: value for key, value in kwargs.items() if key not in OWN_KEYS}

    def prompts(self, references: list[Row], own: list[Row]) -> dict[str, list[dict[str, str]]]:
        """{instruction: messages} of all pairs that differ, made by the package; it swaps sides by a seed of its own.

        Raises:
            UserError: the annotator's configuration or template does not work.
        """
        from alpaca_eval.utils import prompt_to_chatml

        asked: dict[str, list[dict[str, str]]] = {}

        def keep(number: int, prompt: str) -> Row:
            said = prompt_to_chatml(prompt.strip())
            asked[own[number]["instruction"]] = [m | {"content": unmark(m["content"])} for m in said]
            return {"text": ""}

        self.run(references, own, keep)
        return asked

    def annotations(self, references: list[Row], own: list[Row], completions: dict[str, Row]) -> list[Row]:
        """The package's rows, with its preferences read from the replies; null where it can read none.

        Args:
            completions: {instruction: {text, logprobs, ...}}, as the package's client returns them.
        """
        return self.run(references, own, lambda number, prompt: completions[own[number]["instruction"]])

    def run(self, references: list[Row], own: list[Row], complete: Callable[[int, str], Row]) -> list[Row]:
        """The package's annotator over `complete`, from a pair's number and its prompt to a reply, as its client."""
        from alpaca_eval.annotators import PairwiseAnnotator

        def client(prompts: list[str], **kwargs: Any) -> Row:
            replies = [complete(number_in(prompt), prompt) for prompt in prompts]
            return {"completions": [reply["text"] for reply in replies], "completions_all": replies}

        with quiet(), tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / self.name / "configs.yaml"  # the package names the annotator by the folder
            file.parent.mkdir()
            file.write_text(yaml.safe_dump({self.name: self.entry}), encoding="utf-8")
            try:
                annotator = PairwiseAnnotator(annotators_config=file, caching_path=None, is_avoid_reannotations=False)
                for single in annotator.annotators.values():
                    single.fn_completions = client
                rows = annotator.annotate_head2head(marked(references), marked(own), chunksize=None)
            except (TypeError, ValueError, AttributeError, AssertionError, OSError) as error:
                raise UserError(
                    f"judge_prompts: alpaca-eval cannot use {self.name}: {str(error) or 'its prompt is not ChatML'}"
                ) from error
        return [plain(row) for row in rows]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the package's bars and its log, which shows a traceback for a reply that it cannot read."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def marked(rows: list[Row]) -> list[Row]:
    """Outputs in which nothing is a mark to the package, and which begin with their pair's number."""
    taken = []
    for number, row in enumerate(rows):
        text = row["output"]
        for mark, stand_in in MARKS.items():
            text = text.replace(mark, stand_in)
        taken.append(row | {"output": f"{NUMBER}{number}{NUMBER}{text}"})
    return taken


def unmark(text: str) -> str:
    text = re.sub(f"{NUMBER}[0-9]+{NUMBER}", "", text)
    for mark, stand_in in MARKS.items():
        text = text.replace(stand_in, mark)
    return text


def number_in(prompt: str) -> int:
    """The number of the pair that a prompt is about."""
    return int(re.search(f"{NUMBER}([0-9]+){NUMBER}", prompt)[1])


def plain(row: Row) -> Row:
    """A row of the package in JSON's values: null for what is not a number, and outputs as they were."""
    row = {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}
    return row | {key: unmark(row[key]) for key in ("output_1", "output_2")}


def length_controlled(frame: "pd.DataFrame", reference_data: str | None) -> Row:
    """The package's raw and length-controlled win rates and standard errors of the benchmark's own instructions.

    Raises:
        UserError: the files that it needs are neither in the folder nor on the hub.
    """
    from alpaca_eval import metrics

    with hub_files(reference_data):
        return plain_numbers(metrics.get_length_controlled_winrate(frame, save_weights_dir=None))


def raw(frame: "pd.DataFrame") -> Row:
    """The package's raw win rate and standard error."""
    from alpaca_eval import metrics

    return plain_numbers(metrics.get_winrate(frame))


def plain_numbers(numbers: Row) -> Row:
    """NumPy numbers as Python's, which JSON can write."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in numbers.items()}


@contextlib.contextmanager
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


def leaderboard(annotator: str) -> "pd.DataFrame":
    """The package's own leaderboard: one row per published model, indexed by its name.

    Raises:
        UserError: alpaca-eval is missing.
    """
    try:
        import alpaca_eval
        import pandas as pd
    except ImportError as error:
        raise UserError(INSTALL) from error
    folder = Path(alpaca_eval.__file__).parent / "leaderboards" / "data_AlpacaEval_2"
    return pd.read_csv(folder / f"{annotator}_leaderboard.csv", index_col=0)

"""What a source of rewards is: something that gives every response to a prompt a number, higher is better.

What a source computes at a time is a unit: one response to a prompt, or for PairRM two of them. Units have values,
which are kept as they come; a prompt's scores are combined from its units' values.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from conversations import Prompt
from simpo.judge.endpoint import EndpointArguments

Unit = tuple[Any, ...]
"""What a value belongs to, as JSON: (prompt, response), or (prompt, first response, second response), ..."""


class CannotScore(Exception):
    """One unit cannot be scored; says why. The others are."""


class Options(NamedTuple):
    """What the user chose about scoring."""

    batch_tokens: int | None = None
    """Tokens of one forward pass, padding included; None: 16384 on a GPU and 2048 on a CPU."""
    max_length: int | None = None
    """Longest prompt and response together, in tokens; longer ones are cut."""
    shared_prompt: bool | None = None
    """Whether the answers to one prompt share it in a row; None: where that is exact."""
    trust_remote_code: bool = False
    time_limit: float = 60.0
    """Seconds that a program has for one prompt."""
    endpoint: EndpointArguments | None = None
    """Where a judge is, and how it is asked."""
    rubric: str | None = None
    """The file by which a judge rates; None: the one that is shipped."""
    folder: Path | None = None
    """Of the results: what a judge replied is kept there."""
    template_variables: dict[str, Any] | None = None
    """Of the model's chat template, as an earlier run recorded them: the date, if it writes one."""


class Outcome(NamedTuple):
    """What came of one unit."""

    value: Any
    """A number; None: there is none."""
    problem: str | None = None
    """Why there is none."""
    notes: tuple[str, ...] = ()
    """What happened to its texts on the way, for the counts."""


class RewardSource:
    """A source of rewards. To add one, write a file in this folder whose `SOURCE` is a class of this kind.

    A source is made from what `--reward_model` says. `score_batches` is all that it must define.
    """

    name: ClassVar[str]
    chunk: ClassVar[int] = 1024
    """Prompts whose units are passed to `score_batches` together."""

    def __init__(self, argument: str, options: Options):
        self.argument, self.options = argument, options

    @classmethod
    def recognizes(cls, name: str) -> bool:
        """Whether `--reward_model` without the source's name means this one, although it is no checkpoint."""
        return False

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """Whether this source scores with checkpoints that have this config.json."""
        return False

    def how(self) -> str:
        """What is to be said of the way in which it scores, once it is loaded."""
        return ""

    def settings(self) -> dict[str, Any]:
        """JSON values that all scores of a folder must have in common, besides `--reward_model` and its weights."""
        return {}

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Get ready to score: called once, when something is left to score."""

    def revision(self) -> str | None:
        """A digest of what scores, where it may change between two runs: then everything is scored again, because the
        units are others."""
        return None

    def units(self, prompt: Prompt, responses: Sequence[str], columns: dict[str, Any] | None = None) -> list[Unit]:
        """What has to be computed to score these responses; `columns`: the others of the prompt's row."""
        return [(prompt, response) for response in responses]

    def score_batches(
        self, units: Sequence[Unit], is_done: Callable[[Unit], bool] = lambda unit: False
    ) -> Iterator[list[tuple[Unit, Outcome]]]:
        """Yield what comes of the units that are not done, some at a time; each list is kept as soon as it comes."""
        raise NotImplementedError

    def combine(self, values: Sequence[Any]) -> list[float | None]:
        """Scores of the responses from the values of their units, in the order of `units`; None: no score."""
        return list(values)

    def score(self, prompt: Prompt, responses: Sequence[str]) -> list[float | None]:
        """Score the responses to one prompt."""
        units = self.units(prompt, responses)
        found = {unit: outcome.value for batch in self.score_batches(units) for unit, outcome in batch}
        return self.combine([found[unit] for unit in units])

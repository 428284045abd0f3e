"""Ratings from a judge: a chat model behind an OpenAI-compatible endpoint rates every response by a rubric.

    --reward_model judge:NAME --base_url http://localhost:8000/v1     (a local judge: vllm serve NAME)

The rubric is a text with the places {prompt} and {response}; its line `Scale: 1 to 10` says which ratings there are.
A rating is read as [[7]], else as a line `Rating: 7`, else as a reply that is a number; of several the last counts, and
of a judge that thinks the last after its thoughts. A reply without one is answered with a request for it. Every reply
is kept in journal/replies.jsonl.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from conversations import Prompt, prompt_text
from rewards.base import Options, Outcome, RewardSource, Unit
from scoring import unit_key
from simpo.console import UserError, warn
from simpo.files import read_text
from simpo.folder import Journal
from simpo.judge.client import Judge
from simpo.judge.endpoint import Endpoint, address_of, check_key
from simpo.judge.replies import Replies, open_journal, read_replies
from simpo.judge.responses import Row, shorten
from simpo.judge.tasks import Key, Reading, Task
from simpo.judge.tasks import Outcome as Judgment
from simpo.judge.work import work_off

RUBRIC = Path(__file__).with_name("rubric.txt")
PLACE = re.compile(r"\{(prompt|response)\}")
SCALE = re.compile(r"^\W*scale\W+(\d+)\s*(?:to|-|\u2013)\s*(\d+)\b", re.I | re.M)
PARAMETERS = {"temperature": 0, "max_tokens": 1024}
PROBE = ("What is two plus two? Answer with a number.", "4")
AT_A_TIME = 4096  # responses whose requests are in memory together


class Rubric(NamedTuple):
    text: str
    low: int
    high: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode(errors="surrogatepass")).hexdigest()[:16]

    def reading(self) -> Reading:
        """How a rating looks. Of "Rating: 1 to 10" or "4/5", where the scale ends elsewhere, nothing is read."""
        number = r"(-?(?>\d+(?:\.\d+)?))"
        of_all = rf"(?:\s*(?:/|out of)\s*{self.high}\b)?"
        alone = r"(?!,\d|\s*(?:-|\u2013|/|to|out of)\s*\d)"
        title = (
            r"(?im)^[^\w\n]*(?:(?:my|the|final|overall|total) )*(?:rating|score)(?: \([^)\n]*\))?[^\w\n]*?[:=][^\w\n-]*"
        )
        patterns = (
            rf"\[\[\s*{number}{of_all}\s*\]\]",
            rf"{title}{number}{of_all}{alone}",
            rf"\A[^\w-]*{number}{of_all}\W*\Z",
        )
        again = f"Give the rating alone, a number from {self.low} to {self.high}, in this form: [[{self.low}]]"
        return Reading(patterns, rule="last", attempts=2, again=again)


def read_rubric(path: Path) -> Rubric:
    """Raises UserError for a file that cannot be read, has no place for the response, or an empty scale."""
    text = read_text(path, "rubric")
    places = set(PLACE.findall(text))
    if "response" not in places:
        raise UserError(f"rubric: {path} has no place {{response}}, where each response is put")
    if "prompt" not in places:
        warn(f"rubric: {path} has no place {{prompt}}: the judge will not know what was asked")
    low, high = map(int, scale.groups()) if (scale := SCALE.search(text)) else (1, 10)
    if low >= high:
        raise UserError(f"rubric: {path}: its scale of {low} to {high} must end above its beginning")
    return Rubric(text, low, high)


class JudgeSource(RewardSource):
    """A judge's ratings belong to the rubric: with an edited one everything is rated again."""

    name = "judge"
    chunk = 10**9  # all prompts at once, so that the journal is read once

    def __init__(self, argument: str, options: Options):
        super().__init__(argument, options)
        if not argument.strip():
            raise UserError("reward_model: judge: is followed by the judge's model name at the endpoint")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "reward_model: a judge is asked by one process, --concurrency requests at a time: start with python, "
                "not with a launcher of several"
            )
        check_key()
        address_of(options.endpoint.base_url)
        self.path = Path(options.rubric or RUBRIC)
        self.rubric = read_rubric(self.path)
        self.reading = self.rubric.reading()
        self.parameters = options.endpoint.parameters(PARAMETERS)
        self.judge: Judge | None = None
        self.served: set[str] = set()

    def settings(self) -> dict[str, Any]:
        return {"judge_parameters": self.parameters}

    def revision(self) -> str:
        return self.rubric.digest

    def load(self, device: Any, dtype: Any) -> None:
        at = self.options.endpoint
        endpoint = Endpoint(self.argument, at.base_url, at.timeout, at.concurrency, "--reward_model judge:NAME")
        self.judge = Judge(endpoint, self.parameters)

    def units(self, prompt: Prompt, responses: Sequence[str], columns: dict[str, Any] | None = None) -> list[Unit]:
        return [(prompt, response, self.rubric.digest) for response in responses]

    def task(self, unit: Unit) -> Task:
        prompt, response, _ = unit
        texts = {"prompt": in_words(prompt), "response": response}
        message = PLACE.sub(lambda place: texts[place[1]], self.rubric.text)
        label = f"{shorten(response)!r} to {shorten(prompt_text(prompt))!r}"
        question_id, part = self.key(unit)
        return Task(question_id, part, [{"role": "user", "content": message}], label)

    def key(self, unit: Unit) -> Key:
        """Of a reply. Of another judge, or of the same one asked with other parameters, it is another."""
        return unit_key((self.argument, self.parameters, *unit)), 0

    def score_batches(
        self, units: Sequence[Unit], is_done: Callable[[Unit], bool] = lambda unit: False
    ) -> Iterator[list[tuple[Unit, Outcome]]]:
        """Each rating as it comes. An answer that is known to be right comes first, so that a judge that rates nothing
        costs one request."""
        pending = [unit for unit in dict.fromkeys(units) if not is_done(unit)]
        if not pending:
            return
        (probe,) = self.units(PROBE[0], PROBE[1:])
        earlier = read_replies(self.options.folder, {self.key(unit) for unit in (probe, *pending)})
        journal = open_journal(self.options.folder)
        ((_, judged),) = self.ask([probe], earlier, journal)
        if (problem := self.outcome_of(judged).problem) is not None:
            raise UserError(
                f"reward_model: {self.argument} does not rate by {self.path}: to a first, simple answer {problem} "
                f"({shorten(judged.judgment, 200)!r}); mend --rubric or --judge_args, or choose another judge"
            )
        for start in range(0, len(pending), AT_A_TIME):
            for unit, judged in self.ask(pending[start : start + AT_A_TIME], earlier, journal):
                yield [(unit, self.outcome_of(judged))]
        if others := sorted(self.served - {self.argument}):
            warn(f"asked for {self.argument}, the endpoint answered as {', '.join(others)}")

    def ask(
        self, units: Sequence[Unit], earlier: dict[Key, list[Row]], journal: Journal
    ) -> Iterator[tuple[Unit, Judgment]]:
        """What earlier runs were told and could not keep as scores any more, and then what the judge says now."""
        of_key = {self.key(unit): unit for unit in units}
        # a reply without a rating, that is no score: it is to be tried again
        tasks = [self.task(unit) for unit in units]
        replies = Replies(tasks, self.reading, earlier, forget=lambda judged: judged.verdict is None)
        missing = {task.key for task in replies.pending()}
        with closing(work_off(self.judge, replies, journal)) as asked:
            for task in chain((task for task in tasks if task.key not in missing), asked):
                judged = replies.outcome(task)
                self.served |= {row["served_by"] for row in judged.replies if row.get("served_by")}
                yield of_key[task.key], judged

    def outcome_of(self, judged: Judgment) -> Outcome:
        """A rating, or why there is none, in words that are the same for all of a kind."""
        low, high = self.rubric.low, self.rubric.high
        if any(row.get("filtered") for row in judged.replies):
            return Outcome(None, "a content filter gives no reply")
        if judged.failed:
            return Outcome(None, f"the judge gives no reply: {shorten(judged.failed, 80)}")
        if judged.verdict is None:
            return Outcome(None, "the judge gives no rating")
        rating = float(judged.verdict)
        if not low <= rating <= high:
            return Outcome(None, f"the judge gives a rating outside {low} to {high}")
        return Outcome(rating)


def in_words(prompt: Prompt) -> str:
    """A prompt as the judge reads it: of a conversation, each message with its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in prompt)


SOURCE = JudgeSource

"""A judge behind an OpenAI-compatible endpoint: what it may answer, and what is done about it.

What one request can run into, and what follows:
    for a while    over a rate limit, overloaded, a dropped connection, no answer in time, a reply that is no reply:
                   asked again, as long as the server asks to wait
    for ever       this question is refused (a content filter, too long): `Refusal`; the rest goes on
    for all        no such address, model or key, a page instead of JSON: a UserError
    a parameter    that the judge does not know is taken out or spelt anew, for all later requests; where it knows no
                   system message, that text begins the user's
"""

import json
import os
import re
import time
from threading import Event, Lock
from typing import Any

import httpx

from simpo.chat.thinking import split_thinking
from simpo.console import UserError, warn
from simpo.judge.endpoint import CONTINUE, KEY, LIMITS, Endpoint, address_of
from simpo.judge.responses import Row, mended, problem_of, shorten, text_of, wait_asked_for
from simpo.judge.tasks import without_system

# How often a request is sent, at most, by what it runs into; and seconds of the first pause, and of the longest that a
# server may ask for.
TRIES = {"limit": 12, "server": 6, "dropped": 6, "unreachable": 6, "timeout": 3, "garbled": 3}
FIRST_WAIT, LONGEST_WAIT = 0.5, 600.0
MORE_ROOM = 4  # a reply that was cut is asked for once more, with so many times the tokens
FILTERED = re.compile(
    r"content[ _-]?(filter|policy|management)|moderat|flagged|safety|inappropriate|prohibited|data_inspection", re.I
)
UNKNOWN_PARAMETER = re.compile(
    r"unsupported|not supported|n.t support|unrecognized|unknown|unexpected|extra (inputs|fields)|not permitted|"
    r"not allowed|deprecated|only the default|only .{1,20} is (allowed|supported)|may only be|"
    r"use .max_completion_tokens",
    re.I,
)
NO_SYSTEM = re.compile(
    r"system[ _-](role|message|prompt|instruction)|(role|message)\W{0,3}\bsystem\b|developer instruction|"
    r"roles must alternate|only user and assistant roles",
    re.I,
)


class Refusal(Exception):
    """This request gets no reply, and why; `filtered`: because of what it says."""

    def __init__(self, reason: str, filtered: bool = False):
        super().__init__(reason)
        self.filtered = filtered


class Trouble(Exception):
    """What a request ran into and may be over when it is sent again."""

    def __init__(self, kind: str, message: str, wait: float | None = None):
        super().__init__(message)
        self.kind, self.wait = kind, wait


class Judge:
    """The judge, asked by several threads at a time.

    Args:
        parameters: of the requests: temperature, max_tokens, ...; null: not sent.

    Attributes:
        parameters: as they are sent, after what the judge refused.
        worked: whether it has given any reply.
    """

    def __init__(self, endpoint: Endpoint, parameters: Row):
        self.endpoint, self.address = endpoint, address_of(endpoint.base_url)
        self.parameters = {key: value for key, value in parameters.items() if value is not None}
        self.worked, self.takes_system, self.lock, self.stopped = False, True, Lock(), Event()
        self.key = os.environ[KEY].strip()
        # httpx hands a proxy's and a certificate's settings on from the environment
        self.client = httpx.Client(
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
            timeout=httpx.Timeout(endpoint.timeout, connect=min(10, endpoint.timeout)),
            limits=httpx.Limits(max_connections=endpoint.concurrency),
        )

    def ask(self, messages: list[dict[str, str]], more_room: bool = False) -> Row:
        """One reply: {content, reasoning (where the endpoint gives it apart), logprobs (where asked for),
        finish_reason, served_by (the model's name as the endpoint gives it), id, usage, max_tokens, seconds}.

        Raises:
            Refusal: no reply to this request.
            UserError: no reply to any.
        """
        tries, start = 0, time.time()
        while True:
            tries += 1
            parameters = dict(self.parameters)
            for name in LIMITS:
                if more_room and name in parameters:
                    parameters[name] *= MORE_ROOM
            try:
                reply = self.send(messages, parameters)
            except Trouble as trouble:
                self.wait_or_give_up(trouble, tries)
                continue
            if reply is None:  # what was refused is changed
                tries -= 1
                continue
            limit = next((parameters[name] for name in LIMITS if name in parameters), None)
            self.worked = True
            return reply | {"max_tokens": limit, "seconds": round(time.time() - start, 3)}

    def wait_or_give_up(self, trouble: Trouble, tries: int) -> None:
        """Wait for the next try, as long as the server asks to, or twice as long as the last time.

        Raises:
            Refusal: this was the last try.
            UserError: the same, where other requests will fare no better.
        """
        most = TRIES[trouble.kind]
        if trouble.kind == "unreachable" and not self.worked:
            most = 2  # not there at all: to be said soon
        wait = min(FIRST_WAIT * 2 ** (tries - 1), 30) if trouble.wait is None else trouble.wait
        if tries < most and wait <= LONGEST_WAIT and not self.stopped.wait(wait):
            return
        if trouble.kind == "limit":
            asks = f" and asks to wait {wait:.0f} s" if wait > LONGEST_WAIT else ""
            raise UserError(
                f"{self.address} is over its rate limit or quota{asks} ({trouble}); wait, or lower --concurrency; "
                f"{CONTINUE}"
            )
        if trouble.kind == "unreachable":
            raise UserError(
                f"{self.address} cannot be reached ({trouble}): start the server or mend --base_url; {CONTINUE}"
            )
        if trouble.kind == "timeout":
            raise Refusal(f"no answer within {self.endpoint.timeout:g} s (--timeout)")
        raise Refusal(str(trouble))

    def send(self, messages: list[dict[str, str]], parameters: Row) -> Row | None:
        """Send one request; None: a parameter or the system message was refused, and is changed.

        Raises:
            Trouble, Refusal, UserError: as their names say.
        """
        as_sent = messages if self.takes_system else without_system(messages)
        body = json.dumps({"model": self.endpoint.model, "messages": as_sent} | parameters)
        try:
            response = self.client.post(f"{self.address}/chat/completions", content=body.encode())
        except httpx.ConnectError as error:
            raise Trouble("unreachable", str(error)) from error
        except httpx.TimeoutException as error:
            kind = "unreachable" if isinstance(error, httpx.ConnectTimeout) else "timeout"
            raise Trouble(kind, f"{type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise Trouble("dropped", f"the connection broke: {error}") from error
        content = self.read(response)
        status, message, code = problem_of(response.status_code, content)
        if status is not None:
            message = message.replace(self.key, "***")  # some servers repeat it
            if as_sent[0]["role"] == "system" and NO_SYSTEM.search(message):
                self.leave_system_out(message)
                return None
            return self.refused(status, message, code, parameters, response.headers)
        return self.reply_in(content)

    def read(self, response: httpx.Response) -> Any:
        """The JSON of a response; None where an error's has none.

        Raises:
            Trouble: it is no JSON.
            UserError: the same, but a page: this is another kind of address.
        """
        try:
            content = json.loads(response.content.decode("utf-8"))
            return content[0] if isinstance(content, list) and len(content) == 1 else content
        except ValueError as error:
            text = " ".join(response.text.split())
            is_page = "html" in response.headers.get("Content-Type", "") or text[:1] == "<"
            if response.status_code != 200:
                return {"error": {"message": f"a page: {shorten(text)}" if is_page else shorten(text)}}
            if is_page and not self.worked:
                raise UserError(
                    f"base_url: {self.address} answers with a page instead of JSON ({shorten(text)}){self.lacks_v1()}: "
                    "mend --base_url"
                ) from error
            raise Trouble("garbled", f"a reply that is no JSON ({shorten(text) or 'empty'})") from error

    def lacks_v1(self) -> str:
        return "" if re.search(r"/v\d", self.address) else f"; such addresses end in /v1: {self.address}/v1"

    def refused(self, status: int, message: str, code: str, parameters: Row, headers: httpx.Headers) -> None:
        """What follows from an error."""
        words, where = f"{code} {message}", self.address
        if status == 429 and "insufficient_quota" in words:
            raise UserError(f"{where}: the key in {KEY} has no quota left ({shorten(message, 200)}); {CONTINUE}")
        if status == 429:
            raise Trouble("limit", shorten(message, 120), wait_asked_for(headers))
        if status >= 500 or status in (408, 409, 425):
            raise Trouble("server", f"status {status}: {shorten(message, 200)}", wait_asked_for(headers))
        if FILTERED.search(words) and status not in (401, 402, 404):
            raise Refusal(f"content filter (status {status}): {shorten(message, 200)}", filtered=True)
        if status in (401, 403):
            raise UserError(f"{where} refuses the key in {KEY} (status {status}): {shorten(message)}; {CONTINUE}")
        if status == 404 and (remedy := self.lacks_v1()):
            raise UserError(f"base_url: {where} answers no chat requests (status 404: {shorten(message)}){remedy}")
        if status == 404:
            raise UserError(
                f"{where} has no judge {self.endpoint.model!r} (status 404: {shorten(message)}); name another with "
                f"{self.endpoint.named_by}"
            )
        if status in (402, 405) or 300 <= status < 400:
            moved = headers.get("Location", "")
            raise UserError(
                f"{where} refuses (status {status}{': goes on at ' + moved if moved else ''}): {shorten(message, 200)}"
                f"{self.lacks_v1()}; {CONTINUE}"
            )
        if not self.changed(words, parameters):
            raise Refusal(f"status {status}: {shorten(message, 200)}")

    def leave_system_out(self, message: str) -> None:
        with self.lock:
            if self.takes_system:
                self.takes_system = False
                warn(
                    f"{self.endpoint.model} takes no system message: its text is put before the user's; "
                    f"{shorten(message, 120)}"
                )

    def changed(self, words: str, parameters: Row) -> bool:
        """Take out or spell anew the parameter that an error is about; whether there was one."""
        named = [name for name in parameters if re.search(rf"(?<![a-z_]){name}(?![a-z_])", words)]
        if not named or not UNKNOWN_PARAMETER.search(words) or "too large" in words:
            return False
        with self.lock:
            if "max_tokens" in named:  # an error about it names the other one as the remedy
                named = [name for name in named if name != "max_completion_tokens"]
            for name in named:
                if name in ("logprobs", "top_logprobs"):
                    raise UserError(self.no_logprobs(shorten(words, 200)))
                if self.parameters.get(name) != parameters[name] and name not in LIMITS:
                    continue  # another thread has changed it
                value = self.parameters.pop(name, None)
                if name == "max_tokens" and value is not None:
                    self.parameters.setdefault("max_completion_tokens", value)
                if value is not None:
                    instead = " (max_completion_tokens instead)" if name == "max_tokens" else ""
                    warn(f"{self.endpoint.model} does not take {name}: sent without it{instead}; {shorten(words, 120)}")
        return True

    def no_logprobs(self, why: str) -> str:
        return (
            f"{self.endpoint.model} at {self.address} gives no log-probabilities of its first token ({why}), from "
            "which this annotator reads the preference: choose another judge, or another annotator with --judge_prompts"
        )

    def reply_in(self, content: Row) -> Row:
        """The reply in a response.

        Raises:
            Trouble: there is none.
            Refusal: a content filter took it away.
            UserError: it lacks the log-probabilities that are needed.
        """
        choices = content.get("choices") if isinstance(content, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        reason = choice.get("finish_reason") if isinstance(choice, dict) else None
        if reason == "content_filter":  # the message may be missing
            raise Refusal("content filter: finish_reason content_filter", filtered=True)
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise Trouble("garbled", f"a reply without choices ({shorten(json.dumps(content), 120)})")
        message = choice["message"]
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        reply = {"content": text_of(message), "finish_reason": reason}
        reply |= {"reasoning": mended(thoughts)} if isinstance(thoughts, str) and thoughts else {}
        if self.parameters.get("logprobs"):
            reply["logprobs"] = self.logprobs_in(choice, reply)
        elif not reply["content"].strip() and reason != "length":
            if refusal := message.get("refusal"):
                raise Refusal(f"the judge declines: {shorten(str(refusal), 200)}", filtered=True)
            raise Trouble("garbled", "an empty reply")
        usage = content.get("usage")
        return reply | {
            "served_by": str(content.get("model") or self.endpoint.model),
            "id": content.get("id"),
            "usage": usage if isinstance(usage, dict) else None,
        }

    def logprobs_in(self, choice: Row, reply: Row) -> Row:
        logprobs = choice.get("logprobs")
        tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
        if isinstance(tokens, list) and tokens and isinstance(tokens[0], dict) and tokens[0].get("top_logprobs"):
            if not self.worked and (reply.get("reasoning") or split_thinking(reply["content"]).thoughts is not None):
                raise UserError(self.no_logprobs("it thinks first"))
            return logprobs
        if self.worked or not reply["content"].strip():
            raise Trouble("garbled", "a reply without log-probabilities")
        raise UserError(self.no_logprobs("the reply has none"))

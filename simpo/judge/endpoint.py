"""Where a judge is, how patiently it is asked, and with which key."""

import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from simpo.console import UserError

KEY = "OPENAI_API_KEY"
CONTINUE = "the replies so far are kept, and the same command continues"
LIMITS = ("max_completion_tokens", "max_tokens")


class Endpoint(NamedTuple):
    """Where the judge is, and how patiently to ask it. The key stays in the environment."""

    model: str
    base_url: str | None
    timeout: float
    concurrency: int
    named_by: str = "--judge"
    """The option that names the model, for messages."""


@dataclass
class EndpointArguments:
    """How to reach a judge."""

    base_url: str | None = field(default=None, metadata={"help": "The endpoint, ending in /v1; OpenAI's by default."})
    judge_args: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Parameters of the judge's requests as JSON, over the defaults; null: none."},
    )
    concurrency: int = field(default=8, metadata={"help": "Requests to the judge under way at a time."})
    timeout: float = field(default=300.0, metadata={"help": "Seconds to wait for one reply of the judge."})

    def __post_init__(self):
        if not 1 <= self.concurrency <= 1000 or not 0 < self.timeout < 1e6:
            raise UserError("concurrency must lie between 1 and 1000, and timeout be above 0")
        if reserved := sorted({"model", "messages", "stream", "n"} & (self.judge_args or {}).keys()):
            raise UserError(f"judge_args: {reserved[0]} is not for this option (the judge's own name is the model)")
        for key in LIMITS:
            limit = (self.judge_args or {}).get(key)
            if limit is not None and (not isinstance(limit, int) or limit < 1):
                raise UserError(f"judge_args: {key} must be a number of tokens, got {limit!r}")

    def parameters(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Of the requests: the defaults, of which a limit gives way to the user's, and the user's own."""
        given = self.judge_args or {}
        own_limit = given.keys() & set(LIMITS)
        return {key: value for key, value in defaults.items() if key not in LIMITS or not own_limit} | given


def check_key() -> None:
    """Raise a UserError when there is no key to send."""
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise UserError(
            f"{KEY} is not set: put the endpoint's key into this environment variable (any word for a local server "
            "that wants none)"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{KEY} holds characters that no key has (a line break, a letter that is not ASCII)")


def address_of(base_url: str | None) -> str:
    """The endpoint's address, without the path of a request.

    Raises:
        UserError: it is no address, or holds more than one.
    """
    address = (base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").strip().rstrip("/")
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise UserError(f"base_url: {address!r} is no address: {error}") from error
    if url.userinfo or url.query:  # not shown: addresses are, in every message
        raise UserError(f"base_url: an address with a password or a question mark in it is not read; {KEY} has the key")
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"base_url: {address!r} must begin with http:// or https://, and end in /v1")
    if url.path.endswith("/completions"):
        raise UserError(f"base_url: {address} must end before /chat/completions")
    return address

"""A judge behind an OpenAI-compatible endpoint: retries, rate limits, and errors that say what to do."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Event
from typing import Any, NamedTuple

from simpo.console import UserError

KEY = "OPENAI_API_KEY"
RETRIES = 10
CONTINUE = "the replies so far are kept, and the same command continues"


class Endpoint(NamedTuple):
    """Where the judge is, and how patiently to ask it. The key stays in the environment."""

    model: str
    base_url: str | None
    timeout: float
    concurrency: int


def check_key() -> None:
    """Raise a UserError when there is no key to send."""
    if not os.environ.get(KEY):
        raise UserError(
            f"{KEY} is not set: put the endpoint's key into this environment variable (any word for a local server "
            "that wants none)"
        )


def address(endpoint: Endpoint) -> str:
    return endpoint.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise a UserError when nothing answers at the endpoint, at once instead of after all retries."""
    import openai

    client = openai.OpenAI(base_url=endpoint.base_url, timeout=10, max_retries=0)
    try:
        client.models.list()
    except openai.APITimeoutError:
        pass  # slow, but there
    except openai.APIConnectionError as error:
        raise UserError(
            f"{address(endpoint)} cannot be reached ({error.__cause__ or error}): start the server or mend --base_url"
        ) from error
    except openai.OpenAIError:
        pass  # any answer will do: not every endpoint lists its models


@contextmanager
def failures(endpoint: Endpoint) -> Iterator[None]:
    """What the endpoint refuses, after all retries, becomes a UserError with the remedy."""
    import openai

    where = address(endpoint)
    try:
        yield
    except openai.APITimeoutError as error:
        raise UserError(f"{where} did not answer within {endpoint.timeout:g} s (--timeout); {CONTINUE}") from error
    except openai.APIConnectionError as error:
        raise UserError(
            f"{where} cannot be reached ({error.__cause__ or error}): start the server or mend --base_url; {CONTINUE}"
        ) from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise UserError(f"{where} refuses the key in {KEY} (status {error.status_code}); {CONTINUE}") from error
    except openai.NotFoundError as error:
        raise UserError(f"{where} has no judge {endpoint.model!r} (status 404); name another with --judge") from error
    except openai.RateLimitError as error:
        raise UserError(f"{where} is over its rate limit or quota; wait, or lower --concurrency; {CONTINUE}") from error
    except openai.APIStatusError as error:
        message = " ".join(str(error.message).split())[:200]
        raise UserError(f"{where} refuses a request (status {error.status_code}): {message}; {CONTINUE}") from error
    except openai.OpenAIError as error:
        raise UserError(f"{where}: {error}; {CONTINUE}") from error


def make_client(endpoint: Endpoint) -> Any:
    """The client, which repeats what timed out, was over a rate limit (as long as the server asks to wait) or failed
    on the server's side."""
    import openai

    with failures(endpoint):
        return openai.OpenAI(base_url=endpoint.base_url, timeout=endpoint.timeout, max_retries=RETRIES)


def ask(client: Any, model: str, messages: list[dict[str, str]], temperature: float, max_tokens: int) -> dict[str, Any]:
    """One reply: {content, finish_reason, served_by (the model's name as the endpoint gives it), id, usage}."""
    reply = client.chat.completions.create(
        model=model, messages=messages, temperature=temperature, max_tokens=max_tokens
    )
    choice = reply.choices[0]
    return {
        "content": choice.message.content or "",
        "finish_reason": choice.finish_reason,
        "served_by": reply.model,
        "id": reply.id,
        "usage": reply.usage.model_dump() if reply.usage else None,
    }


def work_off(tasks: list[Any], do: Callable[[Any, Any], None], endpoint: Endpoint, label: str) -> None:
    """Do all tasks, several at a time; stops at the first that fails, after those under way have ended.

    Args:
        do: function of (client, task) that keeps its own result.

    Raises:
        UserError: the endpoint refuses or cannot be reached.
    """
    from tqdm import tqdm

    client, pool, failed = make_client(endpoint), ThreadPoolExecutor(endpoint.concurrency), Event()

    def do_unless_failed(task: Any) -> None:
        if not failed.is_set():
            try:
                do(client, task)
            except Exception:
                failed.set()
                raise

    with tqdm(total=len(tasks), desc=label, unit="judgment", smoothing=0) as bar, failures(endpoint):
        try:
            for future in as_completed([pool.submit(do_unless_failed, task) for task in tasks]):
                future.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)

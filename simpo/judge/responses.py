"""What the responses of OpenAI-compatible endpoints say: errors in all their places, texts, and how long to wait."""

import json
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

Row = dict[str, Any]
SURROGATE = re.compile("[\ud800-\udfff]")


def mended(value: Any) -> Any:
    """The value with the sign for it in place of half a character (a lone surrogate), which no tokenizer takes."""
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {key: mended(part) for key, part in value.items()}
    return [mended(part) for part in value] if isinstance(value, list) else value


def shorten(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def text_of(message: Row) -> str:
    """What a message says: its content (text, or parts of text), or the arguments of the function that it calls."""
    calls, call = message.get("tool_calls"), message.get("function_call")
    if isinstance(calls, list) and calls and isinstance(calls[0], dict):
        call = call or calls[0].get("function")
    if isinstance(call, dict):
        return mended(str(call.get("arguments", "")))
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return mended(content) if isinstance(content, str) else ""


def problem_of(status: int, content: Any) -> tuple[int | None, str, str]:
    """(status, message, code) of an error; an error may come with status 200, and its number in the text. The status is
    None where all is well."""
    found = content if isinstance(content, dict) else {"message": str(content)}
    choices = found.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = found.get("error") or first.get("error")
    if not error and (found.get("object") == "error" or status != 200):
        error = found
    if not error:
        return None, "", ""
    if not isinstance(error, dict):
        error = {"message": str(error)}
    message = str(error.get("message") or error.get("detail") or error.get("error") or json.dumps(error))
    code = f"{error.get('code') or ''} {error.get('type') or ''} {error.get('param') or ''}"
    if status == 200:
        number = re.search(r"\b[45]\d\d\b", f"{error.get('code')} {error.get('status')}")
        status = (
            int(number[0]) if number else 429 if re.search(r"rate.?limit|overloaded", code + message, re.I) else 400
        )
    return status, message, code


def wait_asked_for(headers: httpx.Headers) -> float | None:
    """Seconds that the server asks to wait before the next try: a number, or the time of a date."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if re.fullmatch(r"\d+(\.\d+)?", headers.get(name, "")):
            return float(headers[name]) / unit
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None

"""A judge's endpoint on this machine: replays replies over HTTP, misbehaves on order, and remembers what it served."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "not-a-real-key-7f3a"
Reply = tuple[str, list[tuple[str, float]]]  # text, and the first token's (token, log-probability)


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


# What may come in place of a reply: name -> (status, body).
FAULTS: dict[str, tuple[int, Any]] = {
    "page": (200, "<!DOCTYPE html><html><body>Sign in</body></html>"),
    "no choices": (200, {"id": "x", "choices": None}),
    "empty choices": (200, {"id": "x", "choices": []}),
    "null content": (200, {"choices": [{"message": {"role": "assistant", "content": None}, "finish_reason": "stop"}]}),
    "rate limit in 200": (200, error("Rate limit reached", code=429)),
    "overloaded in 200": (200, [error("The model is overloaded.", code=503, status="UNAVAILABLE")]),
    "error in the choice": (200, {"choices": [error("Upstream failed", code=502)]}),
    "cut off": (200, '{"id": "x", "choices": [{"message": {"content": "My verd'),
    "not UTF-8": (200, b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'),
    "nothing": (200, ""),
    "gateway": (502, "<html><body>Bad gateway</body></html>"),
    "filter": (400, error("The response was filtered by the content management policy.", code="content_filter")),
    "filter in 200": (200, {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}),
    "filter, no message": (200, {"choices": [{"message": None, "finish_reason": "content_filter"}]}),
    "declined": (200, {"choices": [{"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"}]}),
    "flagged": (403, error("Your input was flagged by moderation", code=403)),
    "too long": (400, error("This model's maximum context length is 8192 tokens.", code="context_length_exceeded")),
    "quota": (429, error("You exceeded your current quota.", code="insufficient_quota")),
    "moved": (302, ""),
    "no such path": (404, {"detail": "Not Found"}),
}
FOR_A_WHILE = (
    *("429", "500", "no choices", "empty choices", "null content", "rate limit in 200", "overloaded in 200"),
    *("error in the choice", "cut off", "not UTF-8", "nothing", "gateway", "drop", "page"),
)


class JudgeServer(ThreadingHTTPServer):
    """Answers /v1/chat/completions with `reply(messages)`.

    Args:
        faults: what to do with the requests in turn, before that: a name of FAULTS, a status, "timeout" or "drop" (no
            answer at all), or "" (nothing).
        fault_of: the same by the request, always.
        slow: seconds that every reply takes.

    A reply of more words than the request's max_tokens is cut.
    """

    daemon_threads = True

    def __init__(
        self,
        reply: Callable[[list[dict[str, str]]], Reply],
        faults: list[str] | None = None,
        fault_of: Callable[[dict[str, Any]], str] = lambda request: "",
        slow: float = 0.0,
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.faults, self.fault_of, self.slow = reply, list(faults or []), fault_of, slow
        self.served: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.busy, self.busiest = 0, 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *args: Any) -> None:
        """A client that was killed is no error of the server's."""


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            fault = server.faults.pop(0) if server.faults else server.fault_of(request)
            server.busy += not fault
            server.busiest = max(server.busiest, server.busy)
        try:
            if fault:
                self.misbehave(fault)
            else:
                time.sleep(server.slow)
                text, logprobs = server.reply(request["messages"])
                limit = request.get("max_tokens", request.get("max_completion_tokens", 10**6))
                words = text.split(" ")
                is_cut = len(words) > limit and not logprobs
                text = " ".join(words[:limit]) if is_cut else text
                with server.lock:
                    server.served.append({"messages": request["messages"], "reply": text, "request": request})
                    server.busy -= 1  # before the client, who then asks again, has the reply
                self.send(200, completion(request["model"], text, logprobs, "length" if is_cut else "stop"), {})
        except (BrokenPipeError, ConnectionResetError):  # the client was killed
            pass

    def misbehave(self, fault: str) -> None:
        self.server.refused.append(fault)
        if fault == "timeout":
            time.sleep(4)  # longer than the tests' --timeout; nobody listens any more
        elif fault == "drop":
            self.close_connection = True
        elif fault.isdigit():
            self.send(int(fault), error(f"planted {fault}"), {"Retry-After": "0.05"})
        else:
            status, body = FAULTS[fault]
            self.send(status, body, {"Location": "/login"} if fault == "moved" else {})

    def send(self, status: int, content: Any, headers: dict[str, str]) -> None:
        kind = "text/html" if isinstance(content, str) and content.startswith("<") else "application/json"
        if isinstance(content, dict | list):
            content = json.dumps(content)
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def completion(model: str, text: str, logprobs: list[tuple[str, float]], finish_reason: str = "stop") -> dict[str, Any]:
    """A reply in the form of the OpenAI API."""
    tokens = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in logprobs]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
                "logprobs": {"content": [{**tokens[0], "top_logprobs": tokens}]} if tokens else None,
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def preference_reply(share: float) -> Reply:
    """AlpacaEval's kind of reply: one token, m with probability `share`, M with the rest."""
    return ("m" if share > 0.5 else "M"), [("m", math.log(share)), ("M", math.log(1 - share))]


@contextmanager
def serving(reply: Callable[[list[dict[str, str]]], Reply], **kwargs: Any) -> Iterator[JudgeServer]:
    server = JudgeServer(reply, **kwargs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

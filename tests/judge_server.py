"""A judge's endpoint on this machine: replays replies over HTTP, with faults, and remembers what it served."""

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


class JudgeServer(ThreadingHTTPServer):
    """Answers /v1/chat/completions with `reply(messages)`.

    Args:
        faults: what to do with the requests in turn, before that: "429", "500", "401", "timeout", or "".
        slow: seconds that every reply takes.
    """

    daemon_threads = True

    def __init__(self, reply: Callable[[list[dict[str, str]]], Reply], faults: list[str] | None = None, slow=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.faults, self.slow = reply, list(faults or []), slow
        self.served: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.busy, self.busiest = 0, 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            fault = server.faults.pop(0) if server.faults else ""
            server.busy += fault != "timeout"
            server.busiest = max(server.busiest, server.busy)
        try:
            if fault == "timeout":
                server.refused.append(fault)
                time.sleep(4)  # longer than the tests' --timeout; nobody listens any more
            elif fault:
                server.refused.append(fault)
                self.send(int(fault), {"error": {"message": f"planted {fault}"}}, {"Retry-After": "0.05"})
            else:
                time.sleep(server.slow)
                text, logprobs = server.reply(request["messages"])
                with server.lock:
                    server.served.append({"messages": request["messages"], "reply": text, "request": request})
                self.send(200, completion(request["model"], text, logprobs), {})
        except BrokenPipeError:  # the client was killed
            pass
        finally:
            with server.lock:
                server.busy -= fault != "timeout"

    def send(self, status: int, content: dict[str, Any], headers: dict[str, str]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def completion(model: str, text: str, logprobs: list[tuple[str, float]]) -> dict[str, Any]:
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
                "finish_reason": "stop",
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
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

"""`Dataset.map` with a cache that knows what its result depends on."""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from simpo.data.cache import from_cache

CODE = Path(__file__).parent.parent  # whose folders chat and data turn rows into tokens


@cache
def code_version() -> str:
    """A digest of the code that turns rows into tokens: what another version prepared is not served from the cache."""
    digest = hashlib.sha256("".join(map(version, ("jinja2", "tokenizers", "transformers"))).encode())
    for path in sorted([*CODE.glob("chat/*.py"), *CODE.glob("data/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def map_rows(
    dataset: Dataset, function: Callable[..., dict[str, Any]], key: Any, num_proc: int | None, **kwargs: Any
) -> Dataset:
    """`Dataset.map`, cached under a fingerprint of `key` and the code: a tokenizer's own hash changes as it is used."""
    num_proc = min(num_proc or 1, max(1, len(dataset) // 1000))  # a batch of `map` for each, at least
    if num_proc > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per process, and no warning after each fork
    kwargs |= {
        "num_proc": num_proc if num_proc > 1 else None,
        "new_fingerprint": Hasher.hash((dataset._fingerprint, key, code_version())),
    }
    return from_cache(lambda cached: dataset.map(function, load_from_cache_file=cached, **kwargs))


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """What determines a tokenizer's output here, for the cache."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    return (type(tokenizer).__name__, backend, tokenizer.chat_template, sorted(tokenizer.special_tokens_map.items()))

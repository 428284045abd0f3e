"""Conversations to the token ids that the model answers: the right template, exactly one BOS, nothing cut."""

from typing import Any

from decoding import Decoding
from simpo.console import UserError


class Prompter:
    """Formats a benchmark's conversations for one model.

    Args:
        prompt_template: AlpacaEval's text with {instruction}; None: the tokenizer's chat template.
    """

    def __init__(self, tokenizer: Any, prompt_template: str | None = None):
        from simpo.chat.ids import ContentGuard

        self.tokenizer, self.prompt_template = tokenizer, prompt_template
        self.guard = ContentGuard(tokenizer)

    def token_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation that the model is to continue, with exactly one BOS (if it has one).

        Special tokens spelt in the messages stay text. BOS comes once, whether the template, the tokenizer or neither
        writes it.

        Raises:
            UserError: the template refuses the conversation.
        """
        from simpo.chat.ids import with_one_bos

        return with_one_bos(self.raw_ids(messages), self.tokenizer.bos_token_id)

    def raw_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids as the template writes them, BOS as often as it does."""
        from simpo.chat.ids import chat_ids

        if self.prompt_template is not None:
            text = self.prompt_template.replace("{instruction}", self.guard.protect(messages[0]["content"]))
            return self.guard.ids(text)
        return chat_ids(self.guard, messages, add_generation_prompt=True)[1]


def load_tokenizer(
    model: str,
    chat_template: str | None,
    trust_remote_code: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> tuple[Any, dict[str, Any] | None]:
    """The model's tokenizer with the chat template to use; and the template's variables, the date among them.

    Raises:
        UserError: no such tokenizer, or no such template.
    """
    from simpo.config import DataArguments, ModelArguments
    from simpo.train.model import get_tokenizer

    data_args = DataArguments(chat_template=chat_template, chat_template_kwargs=chat_template_kwargs)
    tokenizer = get_tokenizer(
        ModelArguments(tokenizer_name_or_path=model, trust_remote_code=trust_remote_code), data_args
    )
    tokenizer.model_max_length = 10**9  # the engine's own limit counts
    return tokenizer, data_args.chat_template_kwargs


def check_stop_ids(decoding: Decoding, vocabulary: int) -> None:
    """Raise a UserError for stop tokens that this model cannot write: a sign of another family's configuration."""
    if strange := [number for number in decoding.stop_token_ids if number >= vocabulary]:
        raise UserError(
            f"stop_token_ids: {strange[0]} is no token of this model ({vocabulary} tokens): the configuration is of "
            "another model family"
        )


def tokenizer_revision(tokenizer: Any) -> dict[str, str | None]:
    """What tells one tokenizer from another: the hub's commit (None for a folder) and a digest of what it does."""
    import hashlib

    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    file = cached_file(tokenizer.name_or_path, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False)
    core = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else str(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(f"{core}\n{tokenizer.chat_template}\n{tokenizer.bos_token}\n{tokenizer.eos_token}".encode())
    return {
        "tokenizer_revision": extract_commit_hash(file, None) if file else None,
        "tokenizer_digest": digest.hexdigest()[:16],
    }

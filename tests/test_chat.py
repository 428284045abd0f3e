"""Templates in words (see simpo/chat/templates), the resolver, and prompt/response splitting."""

import pytest
from tiny_models import tiny_tokenizer

from simpo.chat.template import apply_chat_template, render, resolve_chat_template, split_pair
from simpo.console import UserError

SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": " Hi there "}
ANSWER = {"role": "assistant", "content": " Hello. "}


@pytest.mark.parametrize(
    ("name", "messages", "expected"),
    [
        (
            "llama3",
            [SYSTEM, USER, ANSWER],
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>",
        ),
        (
            "gemma2",
            [SYSTEM, USER, ANSWER],
            "<|begin_of_text|><start_of_turn>user\nBe brief.\n\n Hi there<end_of_turn>\n"
            "<start_of_turn>model\nHello.<end_of_turn>\n",
        ),
        ("mistral", [SYSTEM, USER, ANSWER], "[INST] Be brief.\n\n Hi there [/INST] Hello. <|eot_id|>"),
        ("mistral", [{"role": "system", "content": ""}, USER], "[INST] Hi there [/INST]"),
        (
            "zephyr",
            [SYSTEM, USER, ANSWER],
            "<|system|>\n Be brief. <|eot_id|>\n<|user|>\n Hi there <|eot_id|>\n<|assistant|>\n Hello. <|eot_id|>\n",
        ),
    ],
)
def test_templates(name, messages, expected):
    assert render(tiny_tokenizer(template=name), messages) == expected


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("llama3", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("gemma2", "<start_of_turn>model\n"),
        ("zephyr", "<|assistant|>\n"),
        ("mistral", ""),
    ],
)
def test_header_moves_to_the_prompt_on_request(name, header):
    tokenizer = tiny_tokenizer(template=name)
    row = {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "No."}]}
    plain = apply_chat_template(row, tokenizer, "simpo")
    moved = apply_chat_template(row, tokenizer, "simpo", header_in_prompt=True)
    assert moved["text_prompt"] == plain["text_prompt"] + header
    assert header + moved["text_chosen"] == plain["text_chosen"]
    assert header + moved["text_rejected"] == plain["text_rejected"]


def test_resolver(tmp_path):
    own, none = tiny_tokenizer(), tiny_tokenizer(template=None)
    assert resolve_chat_template(own) == (own.chat_template, "the tokenizer's own")
    assert "zephyr" in resolve_chat_template(none).origin
    mistral = resolve_chat_template(own, None, "mistralai/MISTRAL-7B", mistral_override=True)
    assert "[INST]" in mistral.jinja and "Mistral" in mistral.origin
    assert resolve_chat_template(own, None, "mistralai/Mistral-7B").jinja == own.chat_template  # WPO's rule
    assert resolve_chat_template(own, "{{ messages }}", "a/mistral", mistral_override=True).jinja == "{{ messages }}"
    assert "<start_of_turn>" in resolve_chat_template(own, "gemma2").jinja
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    assert resolve_chat_template(own, str(tmp_path / "mine.jinja")).jinja == "{{ messages }}"
    with pytest.raises(UserError, match="chat_template: 'lama3'"):
        resolve_chat_template(own, "lama3")


def test_empty_system_message_only_where_the_template_has_one():
    row = {"messages": [USER]}
    zephyr = tiny_tokenizer(template="zephyr")
    assert apply_chat_template(row, zephyr, "sft")["text"].startswith("<|system|>\n<|eot_id|>")
    assert apply_chat_template(row, zephyr, "sft", auto_insert_empty_system_msg=False)["text"].startswith("<|user|>")
    assert "system" not in apply_chat_template(row, tiny_tokenizer(), "sft")["text"]
    assert apply_chat_template(row, tiny_tokenizer(), "generation")["text"].endswith("assistant<|end_header_id|>\n\n")
    assert row == {"messages": [USER]}  # left as it was


def test_split_pair():
    other = {"role": "assistant", "content": "No."}
    turns = [USER, ANSWER, USER]
    assert split_pair({"chosen": [*turns, ANSWER], "rejected": [*turns, other]}) == (turns, [ANSWER], [other])
    assert split_pair({"prompt": "text", "chosen": [USER, ANSWER], "rejected": [USER, other]})[0] == [USER]
    assert split_pair({"prompt": [USER], "chosen": [ANSWER], "rejected": [other]}) == ([USER], [ANSWER], [other])
    # whole conversations beside a prompt of messages do not repeat it
    whole = {"prompt": turns, "chosen": [*turns, ANSWER], "rejected": [*turns, other]}
    assert split_pair(whole) == (turns, [ANSWER], [other])


def test_tokenizer_without_bos():
    tokenizer = tiny_tokenizer(template="zephyr")
    tokenizer.bos_token = None
    text = apply_chat_template({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, tokenizer, "dpo")
    assert text["text_chosen"] == "<|assistant|>\n Hello. <|eot_id|>\n"

"""Templates in words (see simpo/chat/templates), the resolver, what rows say, and prompt/response splitting."""

import pytest

from simpo.chat.format import apply_chat_template, unused_context
from simpo.chat.ids import ContentGuard, chat_ids
from simpo.chat.rows import split_pair
from simpo.chat.template import render, resolve_chat_template
from simpo.console import UserError
from tiny_models import tiny_tokenizer

SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": " Hi there "}
ANSWER = {"role": "assistant", "content": " Hello. "}
IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


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
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for wrong in ("lama3", "", str(tmp_path), str(tmp_path / "binary"), "long " * 1000):
        with pytest.raises(UserError, match="is not a Jinja template, a text file, or one of gemma2"):
            resolve_chat_template(own, wrong)
    own.chat_template = {"tool_use": "{{ tools }}", "rag": "{{ documents }}"}
    with pytest.raises(UserError, match=r"chat_template: .*multiple chat templates"):
        resolve_chat_template(own)


def test_empty_system_message_only_where_the_template_has_one():
    row = {"messages": [USER]}
    zephyr = tiny_tokenizer(template="zephyr")
    assert apply_chat_template(row, zephyr, "sft")["text"].startswith("<|system|>\n<|eot_id|>")
    assert apply_chat_template(row, zephyr, "sft", auto_insert_empty_system_msg=False)["text"].startswith("<|user|>")
    assert "system" not in apply_chat_template(row, tiny_tokenizer(), "sft")["text"]
    assert apply_chat_template(row, tiny_tokenizer(), "generation")["text"].endswith("assistant<|end_header_id|>\n\n")
    assert row == {"messages": [USER]}  # left as it was


DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml():
    """A tokenizer whose BOS is the marker that begins every turn."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    tokenizer.chat_template = DEFAULT_SYSTEM
    return tokenizer


def test_a_template_with_system_text_of_its_own_keeps_it():
    tokenizer = chatml()
    text = apply_chat_template({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, tokenizer, "simpo")
    assert text["text_prompt"].startswith("<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n Hi there ")
    assert text["text_chosen"] == "<|im_start|>assistant\n Hello. <|im_end|>\n"  # with the BOS that begins a turn
    without = DEFAULT_SYSTEM.partition("{% for")
    tokenizer.chat_template = without[1] + without[2]
    text = apply_chat_template({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, tokenizer, "simpo")
    assert text["text_prompt"].startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")


ENDS_WITH_EOS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
UNRELATED = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
REFUSES = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' }}" + ENDS_WITH_EOS
FORGETS = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}|{% endfor %}"


def test_a_prompt_that_would_end_with_eos_asks_for_the_answer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = ENDS_WITH_EOS
    text = apply_chat_template({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, tokenizer, "dpo")
    assert text["text_prompt"] == "<|user|> Hi there <|end|><|assistant|>"
    assert text["text_chosen"] == " Hello. <|end|><|eot_id|>"


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        (UNRELATED, "renders the prompt in another way once an answer follows"),
        (REFUSES, "refuses the conversation: no system role"),
        (FORGETS, r"leaves out message 0 \(of role 'system'\)"),
        ("{{ messages[0]['content'] }}", "leaves out message 1"),
        ("{{ messages[0]['parts'][0] }}", "refuses the conversation: .* has no attribute 'parts'"),
        ("{{ messages + 1 }}", "refuses the conversation"),
        ("{% for m in messages %}{{ m }", "line 1"),
    ],
)
def test_templates_that_do_not_fit_are_one_line(jinja, message):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = jinja
    row = [SYSTEM, USER, ANSWER]
    with pytest.raises(UserError, match=message):
        apply_chat_template({"chosen": row, "rejected": row}, tokenizer, "simpo")


NO = {"role": "assistant", "content": "No."}


def test_split_pair():
    turns = [USER, ANSWER, USER]
    assert split_pair({"chosen": [*turns, ANSWER], "rejected": [*turns, NO]}) == (turns, [ANSWER], [NO])
    assert split_pair({"prompt": "text", "chosen": [USER, ANSWER], "rejected": [USER, NO]})[0] == [USER]
    assert split_pair({"prompt": [USER], "chosen": [ANSWER], "rejected": [NO]}) == ([USER], [ANSWER], [NO])
    # whole conversations beside a prompt of messages do not repeat it
    whole = {"prompt": turns, "chosen": [*turns, ANSWER], "rejected": [*turns, NO]}
    assert split_pair(whole) == (turns, [ANSWER], [NO])
    # a text prompt is the user's message, where the conversations have none
    asked = ([{"role": "user", "content": "Q?"}], [ANSWER], [NO])
    assert split_pair({"prompt": "Q?", "chosen": [ANSWER], "rejected": [NO]}) == asked
    assert split_pair({"prompt": "Q?", "chosen": " Hello. ", "rejected": "No."}) == asked
    assert split_pair({"prompt": asked[0], "chosen": " Hello. ", "rejected": "No."}) == asked
    with_system = split_pair({"prompt": "Q?", "chosen": [SYSTEM, ANSWER], "rejected": [SYSTEM, NO]})
    assert with_system == ([SYSTEM, *asked[0]], [ANSWER], [NO])
    parts = [{"type": "text", "text": "Q", "image_url": None}, {"type": "text", "text": "?"}]
    assert split_pair({"chosen": [{"role": "user", "content": parts}, ANSWER], "rejected": [*asked[0], NO]}) == asked
    # what arrow fills in is taken out; other keys stay, and do not make another history
    weighted = {"chosen": [USER | {"weight": 1.0}, ANSWER], "rejected": [USER | {"weight": None}, NO | {"name": None}]}
    assert split_pair(weighted) == ([USER | {"weight": 1.0}], [ANSWER], [NO])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [USER, ANSWER, USER], "rejected": [USER, NO, USER]}, "chosen must end with an assistant message"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER, USER]}, "rejected must end with an assistant message"),
        ({"chosen": [USER, ANSWER], "rejected": [SYSTEM, USER, NO]}, "not answers to the same conversation"),
        ({"prompt": [USER, ANSWER, USER], "chosen": [NO], "rejected": [USER, NO]}, "not answers to the same"),
        ({"chosen": [ANSWER], "rejected": [NO]}, "the prompt is empty"),
        ({"prompt": "", "chosen": [ANSWER], "rejected": [NO]}, "the prompt is empty"),
        ({"prompt": " \n", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"prompt": [USER | {"content": ""}], "chosen": [ANSWER], "rejected": [NO]}, "the prompt is empty"),
        ({"chosen": "a", "rejected": "b"}, "chosen is text, and there is no prompt"),
        ({"prompt": 7, "chosen": "a", "rejected": "b"}, "prompt is no list"),
        ({"chosen": [], "rejected": [USER, NO]}, "chosen is empty"),
        ({"chosen": [USER, ANSWER], "rejected": None}, "rejected is empty"),
        (
            {"chosen": [USER, ANSWER | {"content": None}], "rejected": [USER, NO]},
            "chosen, message 1: its content is null",
        ),
        ({"chosen": [USER | {"content": [{"type": "text"}]}, ANSWER], "rejected": [USER, NO]}, r"no text \(text\)"),
        ({"chosen": [USER, ANSWER | {"content": [IMAGE]}], "rejected": [USER, NO]}, r"1: .* no text \(image_url\)"),
        ({"chosen": [USER, ANSWER | {"content": ["a"]}], "rejected": [USER, NO]}, r"no text \(str\)"),
        ({"chosen": [{"from": "human", "value": "Q?"}], "rejected": [USER, NO]}, "chosen, message 0 is not"),
        ({"chosen": [USER | {"role": None}, ANSWER], "rejected": [USER, NO]}, "its role is no text"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, NO], "tools": "{"}, "tools is no JSON"),
    ],
)
def test_rows_that_are_no_pairs(row, message):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{{ tools }}"
    with pytest.raises(UserError, match=message):
        apply_chat_template(row, tokenizer, "simpo")


CALLS = (
    "{% if tools %}{{ tools[0]['name'] }}{% endif %}{% for m in messages %}{{ '|' + m['role'] + ':' }}"
    "{% if 'tool_calls' in m %}{{ m['tool_calls'][0]['function']['name'] }}{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}"
)


def test_context_is_used_where_the_template_takes_it():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "x": None}}]}
    result = {"role": "tool", "content": "4", "tool_calls": None}
    prompt = [USER, call, result]
    row = {"prompt": prompt, "chosen": [ANSWER], "rejected": [NO], "system": "Be brief.", "tools": '[{"name": "sum"}]'}
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CALLS
    text = apply_chat_template(row, tokenizer, "simpo")
    assert text["text_prompt"] == "sum|system:Be brief.|user: Hi there |assistant:add|tool:4"
    assert text["text_chosen"] == "|assistant: Hello. "
    tokenizer.chat_template = "{% for m in messages %}|{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="leaves out the tool calls of message 2"):  # the empty system message is 0
        apply_chat_template(row, tokenizer, "simpo")
    tokenizer.chat_template = REFUSES
    row = {"prompt": [USER], "chosen": [ANSWER], "rejected": [NO], "system": "Be brief.", "tools": [{"name": "sum"}]}
    assert apply_chat_template(row, tokenizer, "simpo")["text_prompt"] == "<|user|> Hi there <|end|><|assistant|>"
    assert unused_context(["system", "tools", "chosen"], tokenizer) == ["system", "tools"]


@pytest.mark.parametrize("content", [None, "", "I add."])
def test_a_call_that_the_template_drops_is_no_answer(content):
    """Also where the function's name is a word of the conversation, and where the answer has text beside the call."""
    call = {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": {"name": "Hi"}}]}
    with pytest.raises(UserError, match="leaves out the tool calls of message 1"):
        apply_chat_template({"chosen": [USER, call], "rejected": [USER, NO]}, tiny_tokenizer(), "simpo")
    with pytest.raises(UserError, match="message 1: its tool_calls are no list of calls"):
        row = {"chosen": [USER, call | {"tool_calls": [{"function": "Hi"}]}], "rejected": [USER, NO]}
        apply_chat_template(row, tiny_tokenizer(), "simpo")


DROPS_THOUGHTS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'].split('</think>')[-1] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def test_a_scored_conversation_is_whole():
    """Of two responses that differ in their thoughts only, a reward model must not see the same."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = DROPS_THOUGHTS
    guard = ContentGuard(tokenizer)
    for thoughts in ("Lyon?", "I know <|eot_id|> this."):
        text, ids = chat_ids(guard, [USER, {"role": "assistant", "content": f"{thoughts}</think>Paris."}])
        assert text == f"<|user|> Hi there <|end|><|assistant|>{thoughts}</think>Paris.<|end|>"
        assert tokenizer.decode(ids) == text and tokenizer.eos_token_id not in ids


def test_tokenizer_without_bos():
    tokenizer = tiny_tokenizer(template="zephyr")
    tokenizer.bos_token = None
    text = apply_chat_template({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, tokenizer, "dpo")
    assert text["text_chosen"] == "<|assistant|>\n Hello. <|eot_id|>\n"

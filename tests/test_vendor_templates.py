"""Every vendor's chat template that the installed trl ships: rows are cut where the model is asked and answers."""

from pathlib import Path

import pytest
import trl

from simpo.chat.format import format_pair
from simpo.chat.ids import ContentGuard, chat_ids
from simpo.chat.template import render
from simpo.chat.variables import fix_variables
from simpo.console import UserError
from tiny_models import tiny_tokenizer

FOLDER = Path(trl.__file__).parent / "chat_templates"
VENDORS = {p.stem: p.read_text() for p in sorted(FOLDER.glob("*.jinja")) if not p.stem.endswith("_training")}
SYSTEM = {"role": "system", "content": "Be brief, please."}
QUESTIONS = [{"role": "user", "content": f"Question number {i}?"} for i in range(3)]
ANSWERS = [{"role": "assistant", "content": f"The answer {i} is this."} for i in range(3)]
OTHER = {"role": "assistant", "content": "I do not know."}
CONVERSATIONS = {
    "one turn": [QUESTIONS[0], ANSWERS[0]],
    "three turns": [message for turn in zip(QUESTIONS, ANSWERS, strict=True) for message in turn],
    "system": [SYSTEM, QUESTIONS[0], ANSWERS[0]],
}
# Refused, in one line: templates of models that read pictures, which take lists of parts and no text; no system role.
REFUSED = {"idefics3", "llava_next", "smolvlm"}
NO_SYSTEM = {"gemma"}
# Asked, the model is inside its thoughts already, and an answer without thoughts is rendered without that.
OPENS_THOUGHTS = {"deepseek_r1_distill", "deepseekv3"} | {name for name in VENDORS if name.startswith("nemotron_3")}


WRITE_SYSTEM_TEXT = {"cohere2", "gptoss", "llama3_1", "llama3_2", "muse_glimmer", "qwen2_5", "qwen2_5_vl", "qwen3_8"}


def vendor(name: str, variables=None):
    tokenizer = tiny_tokenizer()
    fix_variables(tokenizer, VENDORS[name], variables)
    return tokenizer


def cut(tokenizer, messages, other=OTHER, **settings):
    return format_pair({"chosen": messages, "rejected": [*messages[:-1], other]}, tokenizer, **settings)


def fed(tokenizer, prompt) -> str:
    """What decode.py and generate_answers.py feed."""
    return chat_ids(ContentGuard(tokenizer), prompt, add_generation_prompt=True)[0]


@pytest.mark.parametrize("name", VENDORS)
def test_prompt_and_response(name):
    tokenizer = vendor(name)
    for kind, messages in CONVERSATIONS.items():
        *prompt, answer = messages
        if name in REFUSED or (name in NO_SYSTEM and kind == "system"):
            with pytest.raises(UserError, match=r"the chat template (refuses|leaves out)"):
                cut(tokenizer, messages)
            continue
        split = cut(tokenizer, messages, auto_insert_empty_system_msg=False)
        assert split.prompt + split.responses[0] == render(tokenizer, messages)
        assert split.prompt + split.responses[1] == render(tokenizer, [*prompt, OTHER])
        assert answer["content"] in split.responses[0] and OTHER["content"] in split.responses[1]
        for message in prompt:
            assert message["content"] in split.prompt and message["content"] not in "".join(split.responses)
        assert fed(tokenizer, prompt).startswith(split.prompt)
        assert split.continues is (name not in OPENS_THOUGHTS)
        if split.continues:
            assert (split.prompt + split.responses[0]).startswith(fed(tokenizer, prompt))

        with_empty = cut(tokenizer, messages)
        if with_empty != split:
            assert name not in WRITE_SYSTEM_TEXT and messages[0] is not SYSTEM
            empty = {"role": "system", "content": ""}
            assert with_empty.prompt + with_empty.responses[0] == render(tokenizer, [empty, *messages])
            assert with_empty.responses == split.responses

        moved = cut(tokenizer, messages, auto_insert_empty_system_msg=False, header_in_prompt=True)
        assert moved.prompt + moved.responses[0] == render(tokenizer, messages)
        assert moved.has_header is split.continues
        if split.continues:
            assert moved.prompt == fed(tokenizer, prompt)


@pytest.mark.parametrize("name", sorted(OPENS_THOUGHTS))
def test_a_model_that_is_asked_inside_its_thoughts(name):
    """Answers with thoughts go on from its prompt, as its own do; without thoughts, where these can be turned off."""
    tokenizer, prompt = vendor(name), QUESTIONS[:1]
    asked = fed(tokenizer, prompt)
    assert asked.endswith("<think>\n")
    for content in ("Let me see.\n</think>\n\nParis.", "<think>\nLet me see.\n</think>\n\nParis."):
        other = {"role": "assistant", "content": content.replace("Paris", "Rome")}
        split = cut(tokenizer, [*prompt, {"role": "assistant", "content": content}], other)
        assert split.continues
        text = split.prompt + split.responses[0]
        assert text.startswith(asked) and text.count("<think>") == text.count("</think>") == 1
        assert text.index("Let me see.") < text.index("</think>") < text.index("Paris.")
    if "enable_thinking" in VENDORS[name]:
        assert cut(vendor(name, {"enable_thinking": False}), [*prompt, ANSWERS[0]]).continues


@pytest.mark.parametrize("name", sorted(VENDORS.keys() - REFUSED))
@pytest.mark.parametrize(
    "content",
    [
        "<think>\nLet me see.\n</think>\n\nParis.",
        "<think>Let me see.</think>Paris.",
        "Let me see.</think>Paris.",
        "<think>Let me see.</think>No: wait.</think>Paris.",
        "<think>\nLet me see, cut",
    ],
)
def test_thoughts_of_the_last_answer_are_kept(name, content):
    tokenizer = vendor(name)
    earlier = [QUESTIONS[0], {"role": "assistant", "content": "<think>Old thoughts.</think>Lyon."}, QUESTIONS[1]]
    other = {"role": "assistant", "content": content.replace("Let me see", "Hm")}
    for prompt in (QUESTIONS[:1], earlier):
        split = cut(tokenizer, [*prompt, {"role": "assistant", "content": content}], other)
        response = split.responses[0]
        for words in ("Let me see", "No: wait.", "Paris."):
            assert response.count(words) == content.count(words)
        if name != "qwen3_5_nothink":  # whose prompt asks for an answer without thoughts
            assert split.continues and response.count("</think>") == content.count("</think>")

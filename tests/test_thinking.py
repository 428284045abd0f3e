"""simpo/chat/thinking.py: where thoughts end and the answer begins."""

import pytest

from simpo.chat.thinking import after_thinking, opens_thinking, split_thinking


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nParis.", "<think>\nHm.\n</think>", "Paris."),
        ("  <think>\n\n</think>\n\nParis.", "  <think>\n\n</think>", "Paris."),
        ("Hm, so\n</think>\nParis.", "Hm, so\n</think>", "Paris."),  # the template opened the block
        ("[THINK]Hm[/THINK]Paris.", "[THINK]Hm[/THINK]", "Paris."),
        ("<think>a</think>b</think>c", "<think>a</think>", "b</think>c"),  # an answer about the tags
        ("Paris.", None, "Paris."),
        ("Write <think> before and </think> after.", None, "Write <think> before and </think> after."),
        ("", None, ""),
    ],
)
def test_split(text, thoughts, answer):
    parts = split_thinking(text)
    assert (parts.thoughts, parts.answer) == (thoughts, answer) and not parts.cut


def test_cut_inside_the_thoughts():
    assert split_thinking("<think>Hm, let me") == ("<think>Hm, let me", "")
    assert split_thinking("<think>Hm, let me").cut
    assert split_thinking("Hm, let me", opened=True).cut and not split_thinking("Hm, let me").cut
    assert split_thinking("Hm</think>Yes", opened=True) == ("Hm</think>", "Yes")


def test_prompt_that_opens_the_block():
    assert opens_thinking("<|im_start|>assistant\n<think>\n") and not opens_thinking("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>[[3]]</think>\nRating: [[8]]", "Rating: [[8]]"),
        ("it wrote </think> [[3]]</think>Rating: [[8]]", "Rating: [[8]]"),
        ("<think>[[3]] and so", ""),
        ("Rating: [[8]]", "Rating: [[8]]"),
    ],
)
def test_a_judge_is_heard_after_its_thoughts(text, said):
    assert after_thinking(text) == said

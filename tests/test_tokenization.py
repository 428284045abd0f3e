"""Prompt and response ids, truncation and the collator, by hand and against recorded runs of the original."""

import gzip
import hashlib
import json

import pytest
import torch
from transformers import AutoTokenizer

from simpo.chat.format import apply_chat_template
from simpo.chat.template import resolve_chat_template
from simpo.console import UserError
from simpo.data.tokenize import PairTokenizer, PreferenceCollator
from tiny_models import tiny_tokenizer

BOS, EOS = 0, 3  # of the tiny tokenizer


class Letters:
    """Ids of single letters, except that "ab" is one token: a merge over the boundary of "a" and "b"."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, texts, **_):
        return {"input_ids": [[9 if c == "#" else ord(c) for c in text.replace("ab", "#")] for text in texts]}


def tokenize(prompt: str, chosen: str, rejected: str, max_length: int = 100, max_prompt_length: int = 50, **kwargs):
    tokenizer = PairTokenizer(Letters(), max_length, max_prompt_length, **kwargs)
    columns = tokenizer({"prompt": [prompt], "chosen": [chosen], "rejected": [rejected]})
    return {name: values[0] for name, values in columns.items()}


def ids(text: str) -> list[int]:
    return [{"^": 1, "$": 2, "#": 9}.get(c, ord(c)) for c in text]


def test_bos_and_eos_are_added_once():
    row = tokenize("pq", "xy", "z")
    assert row["chosen_input_ids"] == ids("^pqxy$")
    assert row["chosen_labels"] == [-100] * 3 + ids("xy$")
    assert row["rejected_input_ids"] == ids("^pqz$")
    assert row["prompt_input_ids"] == ids("^pq")
    again = PairTokenizer(Letters(), 100, 50).pair(ids("^pq"), ids("^pqxy$"), ids("^pqz$"))
    assert again["chosen_input_ids"] == ids("^pqxy$")


def test_a_token_merged_over_the_boundary_belongs_to_the_response():
    row = tokenize("pqa", "bx", "cx")
    assert row["chosen_input_ids"] == ids("^pq#x$")
    assert row["chosen_labels"] == [-100] * 3 + ids("#x$")
    assert row["rejected_labels"] == [-100] * 4 + ids("cx$")
    assert row["prompt_input_ids"] == ids("^pq")  # the shorter of the two


def test_too_long_pairs_lose_prompt_then_response():
    kept_end = tokenize("abcdefgh".replace("b", "_"), "xyz", "v", max_length=9, max_prompt_length=4)
    # ^a_cdefgh (9) + xyz$ (4) > 9: the prompt keeps its last 4; 4 + 4 fits, so the responses stay whole.
    assert kept_end["chosen_input_ids"] == ids("efghxyz$")
    assert kept_end["rejected_input_ids"] == ids("efghv$")
    assert (kept_end["prompt_cut"], kept_end["response_cut"]) == (True, False)
    kept_start = tokenize("a_cdefgh", "xyz", "v", max_length=9, max_prompt_length=4, truncation_mode="keep_start")
    assert kept_start["chosen_input_ids"] == ids("^a_cxyz$")
    both = tokenize("pqrstu", "uvwxyz", "v", max_length=7, max_prompt_length=4)
    # The longer response decides for both; each keeps its first 7 - 4 tokens.
    assert both["chosen_input_ids"] == ids("rstuuvw")
    assert both["rejected_input_ids"] == ids("rstuv$")
    assert (both["prompt_cut"], both["response_cut"]) == (True, True)
    short_prompt = tokenize("p", "uvwxyz", "v", max_length=7, max_prompt_length=4)
    assert short_prompt["chosen_input_ids"] == ids("^puvw")
    assert (short_prompt["prompt_cut"], short_prompt["response_cut"]) == (False, True)


def test_flags():
    assert tokenize("p", "x", "x")["identical"] is True
    assert tokenize("p", "x", "y")["identical"] is False
    assert tokenize("p", "x", "")["empty"] is False  # EOS is left to predict
    no_bos = Letters()
    no_bos.bos_token_id = None
    row = PairTokenizer(no_bos, 10, 5).pair([], ids("x"), [])
    assert row["empty"] is True  # a lone EOS that nothing predicts


def test_no_room_for_a_response_is_refused():
    for max_prompt_length in (10, 11, 0):
        with pytest.raises(UserError, match="max_prompt_length"):
            PairTokenizer(Letters(), 10, max_prompt_length)


def test_no_eos_is_refused():
    tokenizer = Letters()
    tokenizer.eos_token_id = None
    with pytest.raises(UserError, match="EOS"):
        PairTokenizer(tokenizer, 10, 5)


def test_exactly_one_bos_whatever_the_tokenizer_adds():
    for adds_bos in (False, True):
        tokenizer = tiny_tokenizer(adds_bos)
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
        text = apply_chat_template({"chosen": messages, "rejected": messages}, tokenizer, "simpo")
        row = PairTokenizer(tokenizer, 100, 50)({n: [text[f"text_{n}"]] for n in ("prompt", "chosen", "rejected")})
        assert row["chosen_input_ids"][0].count(BOS) == 1
        assert row["chosen_input_ids"][0][0] == BOS and row["chosen_input_ids"][0][-1] == EOS


def test_collator_pads_on_the_right():
    batch = PreferenceCollator(pad_token_id=7)(
        [
            {
                "chosen_input_ids": [1, 5, 6],
                "chosen_labels": [-100, 5, 6],
                "rejected_input_ids": [1, 8],
                "rejected_labels": [-100, 8],
            },
            {
                "chosen_input_ids": [1, 2],
                "chosen_labels": [-100, 2],
                "rejected_input_ids": [1, 3],
                "rejected_labels": [-100, 3],
            },
        ]
    )
    assert batch["input_ids"].tolist() == [[[1, 5, 6], [1, 8, 7]], [[1, 2, 7], [1, 3, 7]]]
    assert batch["attention_mask"].tolist() == [[[1, 1, 1], [1, 1, 0]], [[1, 1, 0], [1, 1, 0]]]
    assert batch["labels"][0, 1].tolist() == [-100, 8, -100]
    assert batch["labels"].dtype == torch.long


def sha(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def test_recorded_tokenization_of_real_pairs(shared):
    with gzip.open(shared / "pairs" / "dpo_en_demo_300.messages.jsonl.gz") as file:
        pairs = [json.loads(line) for line in file]
    record = json.loads((shared / "golden/records/tokenization_mistral.json").read_text())
    for setting in record.values():
        tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / setting["tokenizer"])
        tokenizer.chat_template = resolve_chat_template(tokenizer, setting["template"]).jinja
        texts = [apply_chat_template(row, tokenizer, "simpo") for row in pairs]
        columns = {name: [text[f"text_{name}"] for text in texts] for name in ("prompt", "chosen", "rejected")}
        tokens = PairTokenizer(tokenizer, setting["max_length"], setting["max_prompt_length"])(columns)
        for i, expected in enumerate(setting["rows"]):
            assert sha([columns[name][i] for name in columns]) == expected["text"]
            assert sha(tokens["prompt_input_ids"][i]) == expected["prompt"]
            for name in ("chosen", "rejected"):
                assert sha([tokens[f"{name}_input_ids"][i], tokens[f"{name}_labels"][i]]) == expected[name]
            lengths = [len(tokens[f"{name}_input_ids"][i]) for name in ("prompt", "chosen", "rejected")]
            assert lengths == expected["lens"]

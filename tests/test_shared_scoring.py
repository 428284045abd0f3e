"""Reward models whose answers share their prompt in a row: the scores of rows of their own, within the budget."""

import json
import random
from itertools import groupby
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForSequenceClassification

from rewards import Options, decoder, load_reward_model
from rewards.batches import make_shared_batches, shared_length
from rewards.decoder import Decoder
from simpo.console import UserError
from simpo.logps.branches import Rows
from tiny_reward_models import tiny_armorm, tiny_classifier, tiny_encoder, tiny_pairrm

WINDOW = {"sliding_window": 16}
MODELS = {
    "llama": (tiny_classifier, {"family": "llama"}),
    "llama without a pad token": (tiny_classifier, {"family": "llama", "pad": False}),
    "mistral": (tiny_classifier, {"family": "mistral", **WINDOW}),
    "gemma2": (tiny_classifier, {"family": "gemma2", "attn_logit_softcapping": 2.0, **WINDOW}),
    "armorm": (tiny_armorm, {}),
}
PROMPTS = {
    "What is the capital of France?": ["Paris.", "It is Lyon, I think, or maybe Nice.", "Paris. " * 9, "", "Paris."],
    "How many days are there in a week?": ["Seven."],
    (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "And?")): ["No.", "No. Yes.", "Why?"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def make(name: str) -> str:
        if name not in made:
            function, settings = MODELS[name]
            made[name] = function(tmp_path_factory.mktemp("rm"), **settings)
        return made[name]

    return make


def loaded(name: str, **options: object) -> Decoder:
    model = load_reward_model(name, Options(**options))
    model.load(torch.device("cpu"), torch.float32)
    return model


def scores(model: Decoder, prompts: dict = PROMPTS) -> list[float]:
    units = [unit for prompt, responses in prompts.items() for unit in model.units(prompt, responses)]
    found = {unit: outcome.value for batch in model.score_batches(units) for unit, outcome in batch}
    return [found[unit] for unit in units]


@pytest.fixture
def widths(monkeypatch) -> list[tuple[int, int]]:
    """Conversations and tokens of every row that was shared."""
    rows, hidden = [], Decoder.hidden

    def recorded(self, groups):
        saved = sum((len(group) - 1) * shared_length(group) for group in groups)
        rows.append((sum(map(len, groups)), sum(len(ids) for group in groups for ids in group) - saved))
        return hidden(self, groups)

    monkeypatch.setattr(Decoder, "hidden", recorded)
    return rows


@pytest.mark.parametrize("name", MODELS)
def test_shared_is_apart(folder, widths, name):
    expected = scores(loaded(folder(name), shared_prompt=False))
    assert not widths and len(set(expected)) == len(expected) - 1  # one answer stands there twice
    for budget in (None, 120, 1):
        widths.clear()
        found = scores(loaded(folder(name), shared_prompt=True, batch_tokens=budget))
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
        assert bool(widths) == (budget != 1)
        assert all(conversations > 1 and tokens <= (budget or 2048) for conversations, tokens in widths)
    assert loaded(folder(name)).score("Hi", ["Yes."]) == pytest.approx(
        loaded(folder(name), shared_prompt=False).score("Hi", ["Yes."]), abs=1e-5
    )


def test_a_whole_batch_in_one_row(folder, widths):
    """... after the trial of the first prompt: no token is run twice, and no padding."""
    model = loaded(folder("llama"))
    scores(model)
    sequences = {
        prompt: [model.encode(unit).inputs["input_ids"] for unit in dict.fromkeys(model.units(prompt, responses))]
        for prompt, responses in PROMPTS.items()
    }
    shared = [group for group in sequences.values() if len(group) > 1]
    tokens = sum(sum(map(len, group)) - (len(group) - 1) * shared_length(group) for group in shared)
    assert shared_length(shared[0]) > 20
    assert widths[1:] == [(sum(map(len, shared)), tokens)]
    widths.clear()
    scores(model)
    assert len(widths) == 1  # tried once


@pytest.mark.parametrize("name", ["llama", "armorm"])
@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1].content }}|{{ messages[0].content }}",  # nothing is shared
        "{{ messages[0].content }}{{ messages[-1].content }}",  # a token may reach from the prompt into the answer
    ],
)
def test_only_tokens_that_are_the_same_are_shared(folder, widths, name, template):
    header = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}"
    prompts = {"the days": ["", " of", "s", "How", "How many days are there"]}
    found = []
    for shared in (True, False):
        model = loaded(folder(name), shared_prompt=shared)
        model.tokenizer.chat_template = template + (header if name == "armorm" else "")
        found.append(scores(model, prompts))
    assert found[0] == pytest.approx(found[1], abs=1e-5, rel=1e-5)
    assert widths and len(set(found[1])) == 5


def test_a_gate_inside_the_answer(tmp_path):
    """A gating pattern of ordinary tokens, which some answers repeat: the gate is read where it was."""
    name = Path(tiny_armorm(tmp_path))
    config = json.loads((name / "config.json").read_text())
    pattern = AutoTokenizer.from_pretrained(name)("?", add_special_tokens=False)["input_ids"]
    (name / "config.json").write_text(json.dumps(config | {"gating_pattern": pattern}))
    prompts = {"What is it?": ["So? Yes.", "It was.", "That? What? Why? Who?", "?"]}
    shared, apart = (loaded(str(name), shared_prompt=shared) for shared in (True, False))
    expected = scores(apart, prompts)
    assert scores(shared, prompts) == pytest.approx(expected, abs=1e-5)
    gates = [shared.places(shared.encode(unit).inputs["input_ids"])[1] for unit in shared.units(*prompts.popitem())]
    assert gates[1] < gates[0] < gates[2]


def test_answers_cut_to_the_same_tokens(folder):
    """... within the prompt they share: they are read at its last token, all of them."""
    for name, limit in (("llama", 12), ("armorm", 60)):
        prompts = {"Hi": ["a " * 60, "b " * 60, "a " * 70]}
        models = (loaded(folder(name), shared_prompt=shared, max_length=limit) for shared in (True, False))
        shared, apart = (scores(model, prompts) for model in models)
        assert shared == pytest.approx(apart, abs=1e-5) and shared[0] == pytest.approx(shared[2], abs=1e-5)


def test_an_end_that_is_the_pad_token(tmp_path):
    """Many checkpoints pad with the token that ends a conversation, and are read at the one before."""
    name = Path(tiny_classifier(tmp_path))
    before = scores(loaded(str(name)))
    config = json.loads((name / "config.json").read_text())
    end = AutoTokenizer.from_pretrained(name).eos_token_id
    (name / "config.json").write_text(json.dumps(config | {"pad_token_id": end}))
    shared, apart = (scores(loaded(str(name), shared_prompt=shared)) for shared in (True, False))
    assert shared == pytest.approx(apart, abs=1e-5) and shared != pytest.approx(before, abs=1e-3)


def flat(spans, width, device):
    """Rows in which every answer sees those before it."""
    return Rows([[(width,)]], width, device)


def one_too_long(spans, width, device):
    """Rows in which a prompt takes a token of its first answer along."""
    (row,) = spans
    return Rows([[(prompt + 1, first - 1, *others) for prompt, first, *others in row]], width, device)


@pytest.mark.parametrize("name", ["llama", "gemma2", "armorm"])
@pytest.mark.parametrize("mistake", [flat, one_too_long])
def test_a_wrong_mask_is_found_in_the_first_batch(folder, monkeypatch, capsys, name, mistake):
    expected = scores(loaded(folder(name), shared_prompt=False))
    monkeypatch.setattr(decoder, "Rows", mistake)
    model = loaded(folder(name))
    assert model.how() == "the answers to a prompt share it"
    assert scores(model) == pytest.approx(expected, abs=1e-5)
    assert scores(model) == pytest.approx(expected, abs=1e-5)
    assert capsys.readouterr().err.count("warning: scoring: every answer in a row of its own after all") == 1
    with pytest.raises(UserError, match=r"shared_prompt: not with .*other hidden states"):
        scores(loaded(folder(name), shared_prompt=True))


def test_apart_after_all_within_the_budget(folder, monkeypatch):
    """What was to share a row is more than the budget, each with a prompt of its own."""
    monkeypatch.setattr(decoder, "Rows", flat)
    model, sizes = loaded(folder("llama"), batch_tokens=120), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **x: sizes.append(x["input_ids"].shape) or forward(**x))
    scores(model)
    assert len(sizes) > 1 and all(rows * width <= 120 or rows == 1 for rows, width in sizes)


def test_models_that_cannot(tmp_path):
    bert = tiny_encoder(tmp_path / "bert", "bert")
    assert "row of its own (bert models are not known" in loaded(bert).how()
    with pytest.raises(UserError, match=r"shared_prompt: not with .*bert models are not known"):
        load_reward_model(bert, Options(shared_prompt=True))

    with pytest.raises(UserError, match="shared_prompt: PairRM reads"):
        load_reward_model(tiny_pairrm(tmp_path / "pairrm"), Options(shared_prompt=True))

    ahead = Path(tiny_classifier(tmp_path / "ahead"))
    config = json.loads((ahead / "config.json").read_text())
    (ahead / "config.json").write_text(json.dumps(config | {"use_bidirectional_attention": True}))
    assert "row of its own" in load_reward_model(str(ahead)).how()

    known = Path(tiny_classifier(tmp_path / "gpt_neox"))
    size = json.loads((known / "config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    GPTNeoXForSequenceClassification(
        GPTNeoXConfig(vocab_size=size, num_labels=1, pad_token_id=size - 1, initializer_range=0.3, **sizes)
    ).save_pretrained(known)
    model = loaded(str(known))
    assert "GPTNeoXForSequenceClassification has a forward of its own" in model.how()
    assert scores(model) == pytest.approx(scores(loaded(str(known), shared_prompt=False)), abs=1e-5)
    with pytest.raises(UserError, match="has a forward of its own"):
        loaded(str(known), shared_prompt=True)


def test_half_precision(folder):
    """Rounding is no mistake."""
    for name in ("llama", "gemma2", "armorm"):
        model = load_reward_model(folder(name), Options(shared_prompt=True))
        model.load(torch.device("cpu"), torch.bfloat16)
        assert scores(model) == pytest.approx(scores(loaded(folder(name))), abs=0.1, rel=0.1)


def test_batches_by_hand():
    """Tokens: 3 shared and 2, 1, 4 of their own; one alone; 2 shared and 1, 1."""
    sequences = [[1, 1, 1, 2, 2], [1, 1, 1, 3], [1, 1, 1, 4, 4, 4, 4], [5] * 9, [6, 6, 7], [6, 6, 8]]
    prompts = ["a", "a", "a", "b", "c", "c"]
    assert make_shared_batches(prompts, sequences, 100) == [[0, 1, 2, 4, 5], [3]]
    assert make_shared_batches(prompts, sequences, 10) == [[0, 1, 2], [4, 5], [3]]
    assert make_shared_batches(prompts, sequences, 9) == [[0, 1], [4, 5], [3], [2]]
    assert make_shared_batches(prompts, sequences, 1) == [[3], [2], [0], [1], [4], [5]]


def test_batches_keep_to_the_budget():
    chance = random.Random(0)
    for _ in range(200):
        prompts, sequences = [], []
        for prompt in range(chance.randint(1, 6)):
            start = chance.choices(range(2), k=chance.randint(0, 12))
            for _ in range(chance.randint(1, 6)):
                prompts.append(prompt)
                sequences.append([9, *start, *chance.choices(range(3), k=chance.randint(0, 12))])
        budget = chance.randint(1, 60)
        batches = make_shared_batches(prompts, sequences, budget)
        assert sorted(i for batch in batches for i in batch) == list(range(len(sequences)))
        for batch in batches:
            groups = [[sequences[i] for i in some] for _, some in groupby(batch, prompts.__getitem__)]
            together = sum(sum(map(len, group)) - (len(group) - 1) * shared_length(group) for group in groups)
            assert together <= budget or len(batch) == 1

"""The fast path against the plain one: values, every gradient, whole trainings."""

import itertools

import pytest
import torch
from conftest import make_pairs
from datasets import Dataset, DatasetDict
from tiny_models import tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from simpo.config import DataArguments
from simpo.console import UserError
from simpo.data.pairs import format_pairs
from simpo.logps.families import LogitShape
from simpo.logps.fused import FastPath, choose_path, fast_logps
from simpo.logps.head import HeadLogps
from simpo.logps.layout import lay_out
from simpo.logps.plain import plain_logps
from simpo_config import SimPOConfig
from simpo_trainer import SimPOTrainer

FAMILIES = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama eager": {"attn_implementation": "eager"},
    "mistral": {"sliding_window": 7},
    "mistral wide": {"sliding_window": 500},
    "gemma2 sdpa": {"sliding_window": 500, "attn_implementation": "sdpa"},
    "gemma2": {"sliding_window": 7, "final_logit_softcapping": 3.0, "attn_implementation": "eager"},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
}
PATHS = [FastPath(True, *flags) for flags in itertools.product((False, True), repeat=2)]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    settings = dict(FAMILIES[request.param])
    attention = settings.pop("attn_implementation", "sdpa")
    family = request.param.split()[0]
    folder = tiny_model(tmp_path_factory.mktemp("model"), family, initializer_range=0.2, **settings)
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
    if request.param == "llama":
        loaded.lm_head.bias = nn.Parameter(torch.randn(loaded.config.vocab_size))
    return loaded


def make_batch(pairs: list[tuple[int, int, int, int]]) -> dict[str, torch.Tensor]:
    """Pairs of (prompt tokens, chosen tokens, rejected tokens, prompt tokens at the end that differ)."""
    torch.manual_seed(1)
    width = max(prompt + max(chosen, rejected) for prompt, chosen, rejected, _ in pairs)
    shape = (2 * len(pairs), width)
    batch = {"input_ids": torch.zeros(shape, dtype=torch.long), "labels": torch.full(shape, -100)}
    batch["attention_mask"] = torch.zeros(shape, dtype=torch.long)
    for number, (prompt, chosen, rejected, differ) in enumerate(pairs):
        ids = torch.randint(4, 300, (prompt,))
        for row, length in ((number, chosen), (number + len(pairs), rejected)):
            own = ids.clone()
            own[prompt - differ :] = torch.randint(4, 300, (differ,))
            response = torch.randint(4, 300, (length,))
            batch["input_ids"][row, : prompt + length] = torch.cat([own, response])
            batch["labels"][row, prompt : prompt + length] = response
            batch["attention_mask"][row, : prompt + length] = 1
    return batch


# long and short, a prompt whose last token differs, one-token responses, a prompt shared in part, no prompt at all
MIXED = make_batch([(12, 9, 17, 0), (20, 1, 1, 1), (3, 14, 2, 0), (9, 5, 5, 4), (0, 8, 6, 0)])


def results_and_gradients(model, function):
    model.zero_grad()
    found = function()
    torch.manual_seed(2)
    (found.sums * torch.randn(len(found.sums))).sum().backward()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_equal_to_the_plain_path(model, path, rows):
    expected, gradients = results_and_gradients(model, lambda: plain_logps(model, **MIXED, with_weights=True))
    found, others = results_and_gradients(
        model,
        lambda: fast_logps(model, model, path, **MIXED, with_weights=True, chunk_logits=rows * model.config.vocab_size),
    )
    for name in ("sums", "lengths", "mean_logits", "log_weights"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    assert gradients.keys() == others.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-5 * max(scale, 1), msg=name)


def test_the_model_is_left_as_it_was(model):
    ids = MIXED["input_ids"][:1, :10]
    before = model(ids).logits
    with pytest.raises(RuntimeError):
        fast_logps(model, model, PATHS[0], **(MIXED | {"input_ids": MIXED["input_ids"].float()}))
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_differs_by_its_own_noise(model, checkpointing):
    """Against float32, the fast path under bf16 autocast is no further off than the plain one (twice, at most)."""
    exact = plain_logps(model, **MIXED).sums
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with torch.autocast("cpu", torch.bfloat16):
            plain, gradients = results_and_gradients(model, lambda: plain_logps(model, **MIXED))
            found, others = results_and_gradients(model, lambda: fast_logps(model, model, PATHS[-1], **MIXED))
    finally:
        model.eval()
        model.gradient_checkpointing_disable()
    noise = (plain.sums - exact).abs().max()
    assert 0 < (found.sums - exact).abs().max() < 2 * noise + 0.05
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() < 0.1 * gradient.norm() + 1e-3, name


def test_lora_and_a_frozen_head(model):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    try:
        path = choose_path(adapted, SimPOConfig(output_dir="unused", max_length=64, max_prompt_length=32))
        assert path.fused and path.shared_prompt
        expected, gradients = results_and_gradients(adapted, lambda: plain_logps(adapted, **MIXED))
        found, others = results_and_gradients(adapted, lambda: fast_logps(adapted, adapted, path, **MIXED))
    finally:
        adapted.unload()
        model.requires_grad_(True)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == others.keys() and all("lora" in name for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-5 * max(1, gradient.abs().max().item()))


def test_head_against_autograd_in_double_precision():
    """The hand-written backward pass against finite differences."""
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.double) for shape in ((5, 4), (6, 4), (6,)))
    labels = torch.tensor([0, 5, 2, 2, 1])
    for softcap, scale in ((None, 1.0), (2.0, 1.0), (None, 0.3), (2.0, 0.3)):
        inputs = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        logps, squares = HeadLogps.apply(*inputs, labels, LogitShape(scale, softcap), 2, True)
        logits = scale * torch.nn.functional.linear(*inputs)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        expected = logits.log_softmax(dim=1)[range(5), labels]
        torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(squares.double(), (2 * logits.log_softmax(1)).logsumexp(1), rtol=1e-5, atol=1e-6)
        weights = torch.randn(5)
        found = torch.autograd.grad((logps * weights).sum(), inputs)
        wanted = torch.autograd.grad((expected * weights).sum(), inputs)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_layout_by_hand():
    """One pair: prompt 1 2, chosen 3 4, rejected 5; a second without prompt: chosen 6, rejected 7 8."""
    pad = -100
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [6, 0, 0, 0], [1, 2, 5, 0], [7, 8, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]),
        "labels": torch.tensor([[pad, pad, 3, 4], [6, pad, pad, pad], [pad, pad, 5, pad], [7, 8, pad, pad]]),
    }
    shared = lay_out(**batch, label_pad_token_id=pad, shared_prompt=True, padding_free=False)
    assert shared.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert shared.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 0, 1, 0, 0]]
    assert shared.places.tolist() == [[0, 1, 2, 3], [5, 0, 0, 0], [0, 1, 4, 0], [6, 7, 0, 0]]
    assert shared.spans == [[(2, 2, 1)], [(0, 1, 2)]]
    assert shared.counts.tolist() == [[2, 2, 1, 1, 1], [1, 1, 1, 0, 0]]
    flat = lay_out(**batch, label_pad_token_id=pad, shared_prompt=True, padding_free=True)
    assert flat.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert flat.spans == [[(2, 2, 1), (0, 1, 2)]]
    alone = lay_out(**batch, label_pad_token_id=pad, shared_prompt=False, padding_free=True)
    assert alone.input_ids.tolist() == [[1, 2, 3, 4, 6, 1, 2, 5, 7, 8]]
    assert alone.spans == [[(4, 0, 0), (1, 0, 0), (3, 0, 0), (2, 0, 0)]]


@pytest.fixture(scope="module")
def texts(tokenizer):
    return format_pairs(DatasetDict(train=Dataset.from_list(make_pairs(80))), tokenizer, DataArguments())["train"]


def trainer(texts, tokenizer, folder, model, **settings):
    args = SimPOConfig(
        output_dir=str(folder), max_length=96, max_prompt_length=48, max_steps=20, per_device_train_batch_size=4,
        use_cpu=True, report_to="none", learning_rate=0.3, save_strategy="no", logging_steps=1, disable_tqdm=True,
        optim="sgd", **settings,
    )  # fmt: skip
    return SimPOTrainer(model, args, train_dataset=texts, processing_class=tokenizer)


@pytest.mark.parametrize(
    "settings", [{}, {"use_wpo_weighting": True, "sft_weight": 0.3}, {"padding_free": False}], ids=str
)
def test_twenty_steps_are_the_same(texts, tokenizer, model_folder, tmp_path, settings):
    """Same losses, metrics and weights as the plain path, over 20 steps. (Adam would blow gradients up that are zero
    but for rounding.)"""
    plain = settings | {"fused_logps": False, "padding_free": None}
    runs = [trainer(texts, tokenizer, tmp_path, model_folder, **some) for some in (settings, plain)]
    for run in runs:
        run.train()
    fast, slow = (run.state.log_history[:-1] for run in runs)
    assert len(fast) == 20 and str(choose_path(runs[0].model, runs[0].args)).startswith("without logits, shared")
    for a, b in zip(fast, slow, strict=True):
        for name, value in b.items():
            assert a[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for (name, a), b in zip(runs[0].model.named_parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_chosen_and_refused(tmp_path, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)

    def choose(**settings):
        return choose_path(model, SimPOConfig(output_dir="x", max_length=64, max_prompt_length=32, **settings))

    assert choose() == FastPath(True, True, True)
    assert choose(padding_free=False) == FastPath(True, True, False)
    assert choose(shared_prompt=False, padding_free=True) == FastPath(True, False, True)
    assert str(choose(fused_logps=False)) == "plain"
    model.config._attn_implementation = "flash_attention_2"
    assert choose() == FastPath(True, False, False)
    with pytest.raises(UserError, match="shared_prompt: flash_attention_2"):
        choose(shared_prompt=True)
    model.config._attn_implementation = "sdpa"
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    assert str(choose()) == "plain (the head is a peft.tuners.lora.layer.Linear)"
    with pytest.raises(UserError, match="fused_logps: not for this model"):
        choose(fused_logps=True)
    with pytest.raises(ValueError, match="shared_prompt, padding_free: parts of"):
        choose(fused_logps=False, shared_prompt=True)

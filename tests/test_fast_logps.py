"""The fast path against the plain one: values, every gradient, whole trainings."""

import pytest
import torch
from conftest import ROOT, make_pairs
from datasets import Dataset, DatasetDict
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import model_families
from model_families import CASES, MIXED, PATHS, difference, results, tiny
from simpo.config import DataArguments
from simpo.console import UserError
from simpo.data.pairs import format_pairs
from simpo.logps import families
from simpo.logps.checked import excerpt
from simpo.logps.families import FAMILIES, LogitShape
from simpo.logps.fused import FastPath, choose_path, fast_logps
from simpo.logps.head import HeadLogps
from simpo.logps.layout import lay_out
from simpo_config import SimPOConfig
from simpo_trainer import SimPOTrainer


@pytest.fixture(scope="module", params=CASES)
def model(request):
    found = tiny(request.param)
    if request.param == "llama":
        found.lm_head.bias = nn.Parameter(torch.randn(found.config.vocab_size))
    return found


# for what does not depend on the family: kinds of attention, windows, soft-caps
some_models = pytest.mark.parametrize("model", ["llama", "llama eager", "mistral", "gemma2 eager"], indirect=True)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_equal_to_the_plain_path(model, path):
    """Every family: values, the router's loss, and the gradient of every parameter that has one."""
    expected = results(model)
    found = results(model, path, chunk_logits=7 * model.config.vocab_size)
    assert found.logps.lengths.tolist() == expected.logps.lengths.tolist()
    assert (found.logps.router_loss is None) == (not getattr(model.config, "output_router_logits", False))
    off = difference(found, expected)
    assert off.values < 5e-5 and off.gradients < 1e-5, off
    assert expected.gradients.keys() == dict(model.named_parameters()).keys()


def test_the_page_on_families(monkeypatch):
    """Its table has every family, and its example runs as it stands."""
    page = (ROOT / "docs" / "model_families.md").read_text()
    assert {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")} >= set(FAMILIES)
    monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))
    monkeypatch.setattr(model_families, "CASES", dict(CASES))
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert "vaultgemma" in families.FAMILIES


@some_models
@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize(
    "memory", [0.0, 2.5 * 7 * 320 * 4 / 1e9, None], ids=["none", "2 chunks of 7", "by what is free"]
)
def test_chunks_and_what_is_kept_of_them_change_nothing(model, rows, memory):
    found = results(model, PATHS[-1], chunk_logits=rows * model.config.vocab_size, logits_memory=memory)
    assert max(difference(found, results(model))) < 1e-4


def test_every_family_is_tried():
    assert {case.split()[0] for case in CASES} == set(FAMILIES)


@some_models
def test_the_model_is_left_as_it_was(model):
    ids = MIXED["input_ids"][:1, :10]
    before = model(ids).logits
    with pytest.raises(RuntimeError):
        fast_logps(model, model, PATHS[0], **(MIXED | {"input_ids": MIXED["input_ids"].float()}))
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)


@some_models
@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_differs_by_its_own_noise(model, checkpointing):
    """Against float32, the fast path under bf16 autocast is no further off than the plain one (twice, at most)."""
    exact = results(model).logps.sums
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with torch.autocast("cpu", torch.bfloat16):
            (plain, gradients), (found, others) = results(model), results(model, PATHS[-1])
    finally:
        model.eval()
        model.gradient_checkpointing_disable()
    noise = (plain.sums - exact).abs().max()
    assert 0 < (found.sums - exact).abs().max() < 2 * noise + 0.05
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() < 0.1 * gradient.norm() + 1e-3, name


@some_models
def test_lora_and_a_frozen_head(model):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    try:
        path = choose_path(adapted, SimPOConfig(output_dir="unused", max_length=64, max_prompt_length=32))
        assert path.fused and path.shared_prompt
        expected, found = results(adapted), results(adapted, path)
    finally:
        adapted.unload()
        model.requires_grad_(True)
    assert all("lora" in name for name in expected.gradients)
    off = difference(found, expected)
    assert off.values < 1e-4 and off.gradients < 1e-5, off


@pytest.mark.parametrize("keep", [0, 150, 10**6], ids=["recomputed", "one chunk kept", "kept"])
@pytest.mark.parametrize("trained", ["all", "hidden", "weight", "bias"])
@pytest.mark.parametrize("shape", [LogitShape(), LogitShape(0.3, 2.0)], ids=str)
def test_head_against_autograd_in_double_precision(shape, trained, keep):
    """The hand-written derivatives, whatever is trained and kept: float32 inside, so to its rounding."""
    torch.manual_seed(0)
    names, sizes = ("hidden", "weight", "bias"), ((5, 4), (6, 4), (6,))
    inputs = [torch.randn(*size, dtype=torch.double) for size in sizes]
    for name, values in zip(names, inputs, strict=True):
        values.requires_grad_(trained in ("all", name))
    labels, weights = torch.tensor([0, 5, 2, 2, 1]), torch.randn(5)
    logps, squares = HeadLogps.apply(*inputs, labels, shape, 2, True, keep)
    logits = shape.scale * torch.nn.functional.linear(*inputs)
    logits = logits if shape.softcap is None else shape.softcap * torch.tanh(logits / shape.softcap)
    expected = logits.log_softmax(dim=1)[range(5), labels]
    torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(squares.double(), (2 * logits.log_softmax(1)).logsumexp(1), rtol=1e-5, atol=1e-6)
    learning = [values for values in inputs if values.requires_grad]
    wanted = torch.autograd.grad((expected * weights).sum(), learning)
    for _ in range(2):  # a second pass through the same graph computes again what the first one used up
        found = torch.autograd.grad((logps * weights).sum(), learning, retain_graph=True)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_how_many_products_the_head_costs():
    """2 where it is frozen, 3 where the derivative is kept, else 4; 1 without gradients."""
    products, labels = [], torch.zeros(8, dtype=torch.long)

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
                products.append(function)
            return function(*args, **(kwargs or {}))

    def count(frozen: bool, keep: int, learning: bool = True) -> int:
        hidden, weight = torch.randn(8, 4, requires_grad=learning), torch.randn(6, 4, requires_grad=not frozen)
        products.clear()
        with Count():
            logps, _ = HeadLogps.apply(hidden, weight, None, labels, LogitShape(), 8, False, keep)
            if learning:
                logps.sum().backward()
        return len(products)

    assert [count(True, 0), count(False, 10**6), count(False, 0)] == [2, 3, 4]
    assert count(True, 10**6, learning=False) == 1


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
    assert len(fast) == 20
    assert [str(path).split(",")[0] for run in runs for path in run.log_probs.paths.values()] == [
        "without logits",
        "plain",
    ]
    for a, b in zip(fast, slow, strict=True):
        for name, value in b.items():
            assert a[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for (name, a), b in zip(runs[0].model.named_parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


class Doubled(LlamaForCausalLM):
    """What an update of transformers, or a model's own code, may do to a forward that is in the table."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs


def test_a_changed_forward_is_found_out(texts, tokenizer, tmp_path, model_folder, capsys):
    doubled = Doubled.from_pretrained(model_folder, dtype=torch.float32)
    batch = next(iter(trainer(texts, tokenizer, tmp_path, doubled, fused_logps=False).get_train_dataloader()))
    expected = trainer(texts, tokenizer, tmp_path, doubled, fused_logps=False).concatenated_forward(doubled, batch)
    found = trainer(texts, tokenizer, tmp_path, doubled).concatenated_forward(doubled, batch)
    torch.testing.assert_close(found.chosen_logps, expected.chosen_logps, rtol=0, atol=0)
    assert "warning: log-probs: by the plain path after all" in capsys.readouterr().err
    with pytest.raises(UserError, match="fused_logps: it does not give this model's own log-probabilities"):
        trainer(texts, tokenizer, tmp_path, doubled, fused_logps=True).concatenated_forward(doubled, batch)


def test_the_rounding_of_mixed_precision_is_not_a_wrong_path(texts, tokenizer, tmp_path, model_folder, capsys):
    """accelerate's autocast begins inside the model's call, so that nothing around the call sees it."""
    sure = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    sure.lm_head.weight.data *= 50  # as large as a real model's logits
    run = trainer(texts, tokenizer, tmp_path, sure, bf16=True)
    run.concatenated_forward(run.accelerator.prepare(run.model), next(iter(run.get_train_dataloader())))
    assert [path.fused for path in run.log_probs.paths.values()] == [True]
    assert "by the plain path" not in capsys.readouterr().err


def test_what_is_tried_is_short():
    """Around the start of the first pair's responses, and with labels of both."""
    batch = {name: values.repeat_interleave(30, dim=1) for name, values in MIXED.items()}
    tried = excerpt(batch, -100)
    assert tried["input_ids"].shape == (2, 128)
    assert (tried["labels"] != -100).any(dim=1).all() and (tried["labels"][:, :64] == -100).all()


def test_what_is_chosen_and_refused(tmp_path, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)

    def choose(**settings):
        return choose_path(model, SimPOConfig(output_dir="x", max_length=64, max_prompt_length=32, **settings))

    assert choose() == FastPath(True, True, True)
    assert choose(padding_free=False) == FastPath(True, True, False)
    assert choose(shared_prompt=False, padding_free=True) == FastPath(True, False, True)
    assert str(choose(fused_logps=False)) == "plain"
    for attention in ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "flex_attention"):
        model.config._attn_implementation = attention
        assert choose() == FastPath(True, True, True)
    model.config._attn_implementation = "paged|eager"
    assert choose() == FastPath(True, False, False)
    with pytest.raises(UserError, match="shared_prompt, padding_free: not with paged"):
        choose(shared_prompt=True)
    model.config._attn_implementation = "sdpa"
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    assert str(choose()) == "plain (the head is a peft.tuners.lora.layer.Linear)"
    with pytest.raises(UserError, match="fused_logps: not for this model"):
        choose(fused_logps=True)
    with pytest.raises(ValueError, match="shared_prompt, padding_free: parts of"):
        choose(fused_logps=False, shared_prompt=True)

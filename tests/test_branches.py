"""The ways to attend by spans, each against the plain path of the same weights, in float32.

Flash attention's kernels need a GPU: here one with the same signature stands in for the hub's build, and all else is
what transformers does with that. The tests marked gpu take the real ones.
"""

import functools
import itertools
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers.integrations.hub_kernels
import transformers.modeling_flash_attention_utils
import transformers.modeling_utils
import transformers.utils.import_utils
from accelerate import Accelerator
from conftest import losses
from flash_attention import flash_attn_func, flash_attn_varlen_func
from torch.nn.attention import flex_attention
from transformers.utils import is_flash_attn_2_available

import run_reward
import run_simpo
from model_families import CASES, MIXED, PATHS, difference, results, tiny
from simpo.console import UserError
from simpo.logps import varlen
from simpo.logps.attention import attending_by_spans, attention_name
from simpo.logps.branches import Rows
from simpo.logps.checked import CheckedLogps
from simpo.logps.flex import Flex
from simpo.logps.plain import plain_logps
from simpo.logps.varlen import Varlen, lay_out_call
from simpo.train import weights
from simpo.train.weights import choose_attention
from simpo_config import SimPOConfig

BY_SPANS = [path for path in PATHS if path.shared_prompt or path.padding_free]
KERNEL = "kernels-community/flash-attn2"


@pytest.fixture
def kernel(monkeypatch):
    """The hub's build of flash attention, as `kernels` would load it: what it is called with."""
    module, calls = ModuleType("kernels"), []

    @functools.wraps(flash_attn_varlen_func)
    def recorded(*args, **kwargs):
        calls.append(kwargs)
        return flash_attn_varlen_func(*args, **kwargs)

    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, recorded
    module.flash_attn_with_kvcache = None
    module.get_kernel = lambda *_, **__: module
    monkeypatch.setitem(sys.modules, "kernels", module)
    hub, flash = transformers.integrations.hub_kernels, transformers.modeling_flash_attention_utils
    for place in (hub, transformers.modeling_utils, transformers.utils.import_utils):
        monkeypatch.setattr(place, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub, "get_kernel", module.get_kernel)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    is_flash_attn_2_available.cache_clear()
    yield calls
    is_flash_attn_2_available.cache_clear()


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """FlexAttention's definition, uncompiled, and with the gradients that it has but does not let a CPU compute."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        yield


def compared(case, attention, path):
    model = tiny(case)
    expected = results(model)
    model.set_attn_implementation(attention)
    return difference(results(model, path), expected), model


@pytest.mark.parametrize("path", BY_SPANS, ids=str)
@pytest.mark.parametrize(
    "case", ["llama eager", "mistral", "gemma2 eager", "gemma3_text", "qwen2_moe", "gpt_oss eager"]
)
def test_varlen(kernel, case, path):
    off, model = compared(case, "flash_attention_2", path)
    assert off.values < 5e-5 and off.gradients < 1e-5, off
    assert attention_name(model.config) == ("kernels-community/vllm-flash-attn3" if "gpt" in case else KERNEL)


@pytest.mark.parametrize("path", BY_SPANS, ids=str)
@pytest.mark.parametrize("case", ["llama eager", "mistral", "gemma2 eager"])
def test_flex(flex_on_cpu, case, path):
    off, _ = compared(case, "flex_attention", path)
    assert off.values < 5e-5 and off.gradients < 1e-5, off


def test_what_the_kernel_is_called_with(kernel):
    """Two calls a layer, with places and limits that are worked out once for all layers, and Gemma-2's own settings."""
    compared("gemma2 eager", "flash_attention_2", PATHS[-1])
    layers = [kernel[i : i + 2] for i in range(0, len(kernel), 2)]
    assert len(layers) == 2 and [layer[0].get("window_size") for layer in layers] == [(6, 6), None]
    for layer in layers:
        for call, first in zip(layer, layers[0], strict=True):
            assert call["cu_seqlens_q"] is first["cu_seqlens_q"] and call["cu_seqlens_k"] is first["cu_seqlens_k"]
            assert call["cu_seqlens_q"].dtype == torch.int32 and type(call["max_seqlen_q"]) is int
            assert call["causal"] and call["softcap"] == 2.0 and call["max_seqlen_k"] >= call["max_seqlen_q"]


SPANS = [[(9, 4, 0, 12, 1), (0, 3, 5), (6,), (11, 2)]]


def hidden_states(model, attention):
    """The backbone's, sequence by sequence: each by itself with the model's own attention, and in one row by spans."""
    torch.manual_seed(3)
    sequences, ids, positions, places = [], [], [], []
    for prompt, *responses in SPANS[0]:
        shared, start = torch.randint(4, 300, (prompt,)).tolist(), len(ids)
        ids, positions = ids + shared, [*positions, *range(prompt)]
        for length in responses or [0]:
            own = torch.randint(4, 300, (length,)).tolist()
            sequences.append(shared + own)
            places.append([*range(start, start + prompt), *range(len(ids), len(ids) + length)])
            ids, positions = ids + own, [*positions, *range(prompt, prompt + length)]
    with torch.no_grad():
        alone = [model(torch.tensor([some]), use_cache=False).last_hidden_state[0] for some in sequences]
        if attention is not None:
            model.set_attn_implementation(attention)
        row = torch.tensor([ids])
        with attending_by_spans(model, Rows(SPANS, len(ids), row.device)):
            options = {"attention_mask": torch.ones_like(row), "position_ids": torch.tensor([positions])}
            found = model(row, use_cache=False, **options).last_hidden_state[0]
    return torch.cat(alone), torch.cat([found[some] for some in places])


@pytest.mark.parametrize(
    ("case", "attention"),
    [
        *((case, None) for case in CASES),
        *itertools.product(["llama eager", "mistral", "gemma2 eager"], ["flash_attention_2", "flex_attention"]),
    ],
)
def test_any_number_of_responses(kernel, flex_on_cpu, case, attention):
    alone, found = hidden_states(tiny(case).base_model, attention)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("case", ["gemma2 eager", "mistral"])
def test_varlen_with_checkpointing(kernel, case):
    model = tiny(case).train()
    model.config.attention_dropout = 0.0
    expected = results(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.set_attn_implementation("flash_attention_2")
    off = difference(results(model, PATHS[-1]), expected)
    assert off.values < 5e-5 and off.gradients < 1e-5, off


def next_key(pieces, rows):
    call = lay_out_call(pieces, rows)
    return call._replace(keys=call.keys.roll(1))


def no_softcap(self, *args, softcap=None, **kwargs):
    return ATTEND[type(self)](self, *args, **kwargs)


def no_window(self, rows, window, own):
    INIT[type(self)](self, rows, None, own)


ATTEND, INIT = ({kind: getattr(kind, name) for kind in (Varlen, Flex)} for name in ("attend", "__init__"))
MISTAKES = {
    "none": None,
    "a wrong index": (varlen, "lay_out_call", next_key),
    "no soft-cap": (Varlen, "attend", no_softcap),
    "no window": (Varlen, "__init__", no_window),
    "flex: none": None,
    "flex: no soft-cap": (Flex, "attend", no_softcap),
    "flex: no window": (Flex, "__init__", no_window),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_in_the_first_batch(kernel, flex_on_cpu, monkeypatch, capsys, mistake):
    model = tiny("gemma2 eager")
    model.set_attn_implementation("flex_attention" if "flex" in mistake else "flash_attention_2")
    if MISTAKES[mistake]:
        monkeypatch.setattr(*MISTAKES[mistake])
    args = SimPOConfig(output_dir="unused", use_cpu=True, max_length=64, max_prompt_length=32)
    log_probs = CheckedLogps(args, Accelerator(cpu=True))
    torch.testing.assert_close(log_probs(model, MIXED).sums, plain_logps(model, **MIXED).sums, rtol=1e-5, atol=5e-5)
    assert ("by the plain path after all" in capsys.readouterr().err) == (MISTAKES[mistake] is not None)
    assert log_probs.paths[model].fused == (MISTAKES[mistake] is None)


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(weights, "PartialState", lambda: SimpleNamespace(device=torch.device("cuda")))


def test_what_flash_attention_needs(on_a_gpu):
    for name, built in (("flash_attention_2", "pip install flash-attn"), ("flash_attention_3", "flash-attn-3")):
        with pytest.raises(UserError, match=f"{name} needs .*pip install 'kernels>.*{built}.*=sdpa"):
            choose_attention(name, "llama")
    with pytest.raises(UserError, match="=eager"):
        choose_attention("flash_attention_2", "gemma2")
    assert choose_attention("flex_attention", "gemma2") == "flex_attention"


def test_a_run_with_the_hubs_kernel(kernel, on_a_gpu, config, monkeypatch, capsys, tmp_path):
    """Asked for flash_attention_2 where only `kernels` is installed; in bf16, generating in between."""

    def run(name):
        settings = {"bf16": True, "do_eval": True, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
        settings |= {"generate_during_eval": True, "attn_implementation": name, "output_dir": str(tmp_path / name)}
        monkeypatch.setattr(sys, "argv", ["run_simpo.py", config(**settings)])
        run_simpo.main()
        return capsys.readouterr().out, [entry["loss"] for entry in losses(tmp_path / name)]

    said, found = run("flash_attention_2")
    assert f"{KERNEL} attention)" in said
    assert "without logits, shared prompts, no padding (attending by variable lengths)" in said
    assert kernel
    said, expected = run("sdpa")
    assert "no padding (attending in pieces)" in said
    assert found == pytest.approx(expected, rel=0.01)
    answers = [(tmp_path / name / "generations.jsonl").read_text() for name in ("flash_attention_2", "sdpa")]
    assert answers[0].count("\n") == answers[1].count("\n") > 0


@functools.wraps(flash_attn_varlen_func)
def for_inference(*args, **kwargs):
    return flash_attn_varlen_func(*args, **kwargs).detach()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (for_inference, "has no backward pass"),
        (lambda q, k, v, **_: q + k.detach() + v, "has no backward pass"),
        (lambda *_, **__: torch.empty(2) @ torch.empty(3), "does not run here: .*size"),
    ],
)
def test_a_kernel_that_cannot_train(kernel, on_a_gpu, config, monkeypatch, fails, answers, message):
    monkeypatch.setattr(sys.modules["kernels"], "flash_attn_varlen_func", answers)
    settings = {"bf16": True, "attn_implementation": "flash_attention_2"}
    lines = [fails(run_simpo.main, config(**settings))]
    own = dict.fromkeys(("beta", "gamma_beta_ratio", "max_prompt_length"))  # of SimPO
    lines.append(fails(run_reward.main, config(**settings | own)))
    assert all(re.search(f"attn_implementation: {KERNEL} {message}", line) for line in lines)


def test_float32(kernel, on_a_gpu, config, fails):
    line = fails(run_simpo.main, config(attn_implementation="flash_attention_2"))
    assert "attn_implementation: flash_attention_2 has no float32: set bf16: true" in line


def test_cudnns_attention_is_off(config, monkeypatch, fails):
    torch.backends.cuda.enable_cudnn_sdp(True)
    fails(run_simpo.main, config(attn_implementation="flash_attention_3"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "sdpa"])
@pytest.mark.parametrize("case", ["llama eager", "mistral", "gemma2 eager"])
def test_the_real_kernels(case, attention):
    """In bf16, no further from float32 than the plain path with eager attention is (twice, at most)."""
    if attention == "flash_attention_2" and not is_flash_attn_2_available(kernels_fallback_ok=True):
        pytest.skip("neither flash-attn nor kernels is here")
    if attention == "sdpa" and "gemma2" in case:
        pytest.skip("sdpa caps no scores")
    model, batch = tiny(case).cuda(), {name: values.cuda() for name, values in MIXED.items()}
    exact = results(model, batch=batch).logps.sums
    with torch.autocast("cuda", torch.bfloat16):
        plain, gradients = results(model, batch=batch)
        model.set_attn_implementation(attention)
        for path in BY_SPANS:
            found, others = results(model, path, batch=batch)
            assert (found.sums - exact).abs().max() < 2 * (plain.sums - exact).abs().max() + 0.05
            for name, gradient in gradients.items():
                assert (others[name] - gradient).norm() < 0.1 * gradient.norm() + 1e-3, name

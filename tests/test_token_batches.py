"""max_tokens_per_micro_batch: a step's pairs in fewer passes, with the results of the batches they came in."""

import sys

import pytest
import torch
from conftest import losses
from safetensors.torch import load_file
from test_python_api import text_rows
from test_whole_steps import train
from transformers import AutoModelForCausalLM

import run_preference
import run_simpo
from simpo.train.config import config_class
from simpo.train.token_batches import group_pairs, split_up
from simpo.train.trainer import PreferenceTrainer
from tiny_models import tiny_model, tiny_tokenizer

ROWS = 25  # 13 batches of 2, the last of them a single pair; 4 steps of 4, the last of them a single batch
TOKENS = 800


@pytest.fixture(scope="module")
def rows():
    return text_rows(tiny_tokenizer(), ROWS)


class Watched(PreferenceTrainer):
    """Keeps the shape of every training pass."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shapes = []
        self.model.get_input_embeddings().register_forward_pre_hook(self.watch)

    def watch(self, module, inputs):
        if torch.is_grad_enabled():
            self.shapes.append(inputs[0].shape)


def run(folder, rows, model_folder, objective="simpo", **changes) -> Watched:
    values = {
        "output_dir": str(folder), "max_length": 96, "max_prompt_length": 48, "use_cpu": True, "report_to": "none",
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 2, "logging_steps": 1,
        "learning_rate": 1e-3, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    args = config_class(objective)(**(values | changes))
    reference = None
    if args.declaration.reference:  # not the policy's equal: which of two equal rewards is higher, rounding decides
        reference = AutoModelForCausalLM.from_pretrained(tiny_model(folder / "reference", seed=1))
    trainer = Watched(model_folder, args, train_dataset=rows, processing_class=tiny_tokenizer(), ref_model=reference)
    trainer.train()
    return trainer


def check_same(expected, found) -> None:
    for before, after in zip(expected.state.log_history, found.state.log_history, strict=True):
        assert before.keys() == after.keys()
        for name in before.keys() - {"train_runtime", "train_samples_per_second", "train_steps_per_second"}:
            assert after[name] == pytest.approx(before[name], rel=1e-4, abs=2e-5), name
    for name, weight in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], weight, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("simpo", {"train_sampling_strategy": "group_by_length"}),
        ("simpo", {"fused_logps": False, "sft_weight": 0.5}),
        ("simpo", {"padding_free": False}),
        ("simpo", {"shared_prompt": False, "logging_steps": 3, "use_wpo_weighting": True}),
        ("orpo", {"drop_partial_step": True}),
        ("wpo", {"precompute_ref_log_probs": True}),
        ("dpo", {}),
        ("rdpo", {"per_device_train_batch_size": 3}),
    ],
)
def test_the_results_are_those_of_the_batches(rows, model_folder, tmp_path, objective, changes):
    expected = run(tmp_path, rows, model_folder, objective, **changes)
    found = run(tmp_path, rows, model_folder, objective, max_tokens_per_micro_batch=TOKENS, **changes)
    check_same(expected, found)
    assert max(shape.numel() for shape in found.shapes) <= TOKENS
    assert len(found.shapes) < 0.7 * len(expected.shapes)


def test_batches_above_the_limit_are_split(rows, model_folder, tmp_path):
    changes = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8, "fused_logps": False}
    expected = run(tmp_path, rows, model_folder, **changes)
    found = run(tmp_path, rows, model_folder, max_tokens_per_micro_batch=300, **changes)
    check_same(expected, found)
    assert max(shape.numel() for shape in found.shapes) <= 300 < max(shape.numel() for shape in expected.shapes)


@pytest.mark.parametrize("name", ["fused_logps", "padding_free", "shared_prompt"])
def test_tokens_are_counted_as_they_are_run(rows, model_folder, tmp_path, name):
    """The limit is what the largest micro-batch of 8 pairs really took: one token less does not hold them."""
    longest = run(tmp_path, rows.select(range(8)), model_folder, max_steps=1, **{name: False},
                  max_tokens_per_micro_batch=10_000).shapes  # fmt: skip
    assert len(longest) == 1
    limit = longest[0].numel()
    shapes = run(tmp_path, rows.select(range(8)), model_folder, max_steps=1, **{name: False},
                 max_tokens_per_micro_batch=limit).shapes  # fmt: skip
    assert shapes == longest
    shapes = run(tmp_path, rows.select(range(8)), model_folder, max_steps=1, **{name: False},
                 max_tokens_per_micro_batch=limit - 1).shapes  # fmt: skip
    assert len(shapes) == 2 and max(shape.numel() for shape in shapes) < limit


def test_a_resumed_run_ends_with_the_same_weights(rows, model_folder, tmp_path):
    changes = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "max_tokens_per_micro_batch": TOKENS}
    whole = train(tmp_path / "whole", rows, model_folder, **changes)
    for step in (1, 3):  # in the first epoch; in the second, whose first step began in the first
        start = str(tmp_path / "whole" / f"checkpoint-{step}")
        resumed = train(tmp_path / f"from_{step}", rows, model_folder, start, **changes)
        assert resumed.state.global_step == whole.state.global_step == 4
        found, expected = (
            load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in (f"from_{step}", "whole")
        )
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_groups():
    rows = [[10], [50], [20], [40], [30], [60]]
    assert group_pairs(rows, [2] * 6, 100, padding_free=True) == [[5, 3], [1, 4, 2], [0]]
    assert group_pairs(rows, [2] * 6, 100, padding_free=False) == [[5], [1, 3], [4, 2, 0]]
    pairs = [[10, 20], [20, 20], [5, 30]]
    assert group_pairs(pairs, [2] * 3, 80, padding_free=False) == [[2], [0, 1]]
    assert group_pairs(pairs, [2, 2, 1], 200, padding_free=True) == [[1, 0], [2]]  # a pair alone in its batch
    assert group_pairs([[10], [200]], [2] * 2, 100, padding_free=True) == [[1], [0]]


def test_as_many_groups_as_another_process_needs():
    groups = [[5, 3], [1, 4, 2], [0]]
    assert split_up(groups, 3) == groups
    assert split_up(groups, 5) == [[5], [3], [1, 4], [2], [0]]
    assert split_up([[0, 1]], 3) == [[0], [], [1]]  # a process with fewer pairs than that


def test_refused(config, fails, monkeypatch, capsys, tmp_path):
    message = fails(run_simpo.main, config(max_tokens_per_micro_batch=60))
    assert "max_tokens_per_micro_batch (60): row " in message and "set it to " in message
    needed = int(message.split("set it to ")[1].split()[0])
    assert "must be at least 1" in fails(run_simpo.main, config(max_tokens_per_micro_batch=0))
    kto = config(objective="kto", beta=None, gamma_beta_ratio=None, max_tokens_per_micro_batch=needed)
    assert "max_tokens_per_micro_batch: not under kto" in fails(run_preference.main, kto)
    model = tiny_model(tmp_path / "experts", "mixtral", num_local_experts=4, output_router_logits=True)
    message = fails(run_simpo.main, config(model_name_or_path=model, max_tokens_per_micro_batch=needed))
    assert "max_tokens_per_micro_batch: not with output_router_logits" in message
    assert not (tmp_path / "out" / "model.safetensors").exists()

    monkeypatch.setattr(sys, "argv", ["run_simpo.py", config(max_tokens_per_micro_batch=needed)])
    run_simpo.main()
    assert f"2 accumulated, in micro-batches of at most {needed} tokens), 4 steps" in capsys.readouterr().out
    assert len(losses(tmp_path / "out")) == 4

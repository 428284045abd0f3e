"""The Python API as the original's documentation and scripts use it, and what it refuses."""

import json

import pytest
import torch
from conftest import make_pairs, write_jsonl
from datasets import Dataset
from pages import blocks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment import (
    DataArguments,
    H4ArgumentParser,
    ModelArguments,
    apply_chat_template,
    get_checkpoint,
    get_datasets,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
    get_tokenizer,
    is_adapter_model,
)
from simpo.console import UserError
from simpo_config import SimPOConfig
from simpo_trainer import SimPOTrainer
from tiny_models import tiny_model, tiny_tokenizer


def text_rows(tokenizer, count: int = 8) -> Dataset:
    rows = [apply_chat_template(row, tokenizer, task="simpo") for row in make_pairs(count)]
    return Dataset.from_list([{name: row[f"text_{name}"] for name in ("prompt", "chosen", "rejected")} for row in rows])


def settings(folder, **changes) -> SimPOConfig:
    values = {
        "output_dir": str(folder), "max_length": 96, "max_prompt_length": 48, "max_steps": 2, "use_cpu": True,
        "per_device_train_batch_size": 2, "report_to": "none", "learning_rate": 1e-3, "save_strategy": "no",
        "disable_tqdm": True,
    }  # fmt: skip
    return SimPOConfig(**(values | changes))


def test_the_page_from_python(tmp_path, monkeypatch):
    """The example of docs/python.md, as it stands."""
    monkeypatch.chdir(tmp_path)
    tiny_model(tmp_path / "path" / "to" / "model")
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(4))
    (code,) = blocks("docs/python.md", "python")
    names = {}
    exec(code, names)
    assert names["trainer"].state.global_step == 2 and (tmp_path / "outputs/mine/model.safetensors").is_file()


@pytest.mark.parametrize("use_peft", [False, True])
def test_the_documented_sequence(config, tmp_path, use_peft):
    """Parse, load, format, train and save, with every argument that the original's run_simpo.py passes."""
    parser = H4ArgumentParser((ModelArguments, DataArguments, SimPOConfig))
    path = config(do_eval=True, dataset_splits=["train", "test"], gradient_checkpointing=True, use_peft=use_peft)
    model_args, data_args, training_args = parser.parse([path])
    assert get_checkpoint(training_args) is None
    raw_datasets = get_datasets(
        data_args,
        splits=data_args.dataset_splits,
        configs=data_args.dataset_configs,
        columns_to_keep=["messages", "chosen", "rejected", "prompt", "completion", "label"],
    )
    column_names = list(raw_datasets["train"].features)
    data_args.truncation_side = "left"
    tokenizer = get_tokenizer(model_args, data_args)
    raw_datasets = raw_datasets.map(
        apply_chat_template,
        fn_kwargs={"tokenizer": tokenizer, "task": "simpo", "auto_insert_empty_system_msg": True},
        num_proc=data_args.preprocessing_num_workers,
        remove_columns=column_names,
        desc="Formatting comparisons with prompt template",
    )
    for split in ["train", "test"]:
        raw_datasets[split] = raw_datasets[split].rename_columns(
            {"text_prompt": "prompt", "text_chosen": "chosen", "text_rejected": "rejected"}
        )
    quantization_config = get_quantization_config(model_args)
    dtype = model_args.torch_dtype
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": model_args.trust_remote_code,
        "torch_dtype": dtype if dtype in ["auto", None] else getattr(torch, dtype),
        "use_cache": not training_args.gradient_checkpointing,
        "device_map": get_kbit_device_map() if quantization_config is not None else None,
        "quantization_config": quantization_config,
        "attn_implementation": model_args.attn_implementation,
    }
    trainer = SimPOTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=raw_datasets["train"],
        eval_dataset=raw_datasets["test"],
        tokenizer=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    metrics = trainer.train(resume_from_checkpoint=None).metrics
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    trainer.save_model(training_args.output_dir)
    trainer.create_model_card(
        finetuned_from=model_args.model_name_or_path, dataset=["x"], dataset_tags=["x"], tags=["y"]
    )
    evaluation = trainer.evaluate()

    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 4 and steps[0]["loss"] == pytest.approx(1.313, abs=0.2)  # softplus(beta x gamma_beta_ratio)
    assert "eval_rewards/margins" in evaluation
    assert is_adapter_model(training_args.output_dir) == use_peft
    before, after = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path).state_dict(), {}
    if not use_peft:
        after = load_file(tmp_path / "out" / "model.safetensors")
        assert any(not torch.equal(before[name], after[name]) for name in after)
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 4


@pytest.fixture(scope="module")
def bf16_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "bf16"
    AutoModelForCausalLM.from_pretrained(tiny_model(folder), dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kwargs", "dtype"),
    [
        (None, torch.float32),
        ({"torch_dtype": None}, torch.float32),
        ({"torch_dtype": "auto"}, torch.bfloat16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
    ],
)
def test_a_model_given_by_name_is_float32_unless_asked(bf16_folder, tmp_path, kwargs, dtype):
    tokenizer = tiny_tokenizer()
    args = settings(tmp_path, model_init_kwargs=kwargs)
    assert SimPOTrainer(bf16_folder, args, train_dataset=text_rows(tokenizer), tokenizer=tokenizer).model.dtype == dtype


def test_bad_arguments(model_folder, tmp_path):
    tokenizer, rows = tiny_tokenizer(), text_rows(tiny_tokenizer())

    def refused(match: str, model=model_folder, dataset=rows, **changes):
        with pytest.raises(UserError, match=match):
            SimPOTrainer(model, settings(tmp_path, **changes), train_dataset=dataset, tokenizer=tokenizer)

    refused("dtype: 'bf17' is not a type of torch", model_init_kwargs={"torch_dtype": "bf17"})
    refused("column chosen holds messages, not text: render them first", dataset=Dataset.from_list(make_pairs(4)))
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    refused("model_init_kwargs: only for a model given by name", model, model_init_kwargs={"torch_dtype": None})
    refused("model_name_or_path: there is no folder", str(tmp_path / "nowhere"))
    refused("model_name_or_path: cannot load no/where, which is no folder here, from the hub: ", "no/where")


def test_attributes_of_the_original_read_and_set_the_settings(model_folder, tmp_path):
    tokenizer = tiny_tokenizer()
    args = settings(tmp_path, beta=2.5, gamma_beta_ratio=0.3, sft_weight=0.1)
    trainer = SimPOTrainer(model_folder, args, train_dataset=text_rows(tokenizer), tokenizer=tokenizer)
    found = (trainer.beta, trainer.gamma_beta_ratio, trainer.sft_weight, trainer.loss_type, trainer.label_smoothing)
    assert found == (2.5, 0.3, 0.1, "sigmoid", 0)
    assert (trainer.max_length, trainer.max_prompt_length, trainer.truncation_mode) == (96, 48, "keep_end")
    assert trainer.tokenizer is tokenizer and trainer.padding_value == tokenizer.pad_token_id
    assert trainer.label_pad_token_id == -100 and not trainer.is_encoder_decoder
    trainer.beta = 10.0
    logps = torch.tensor([-1.0]), torch.tensor([-1.5])
    expected = -torch.nn.functional.logsigmoid(torch.tensor(10.0 * (0.5 - 0.3)))
    torch.testing.assert_close(trainer.simpo_loss(*logps).losses, expected[None])


class TwoSided:
    """A collator of the original's kind: the sides apart, each padded to its own longest row, on the left."""

    def __init__(self, pad_token_id: int):
        self.fill = {"input_ids": pad_token_id, "attention_mask": 0, "labels": -100}

    def __call__(self, rows):
        batch = {}
        for name in ("chosen", "rejected"):
            width = max(len(row[f"{name}_input_ids"]) for row in rows)
            for what, fill in self.fill.items():
                columns = [row[f"{name}_{what}"] for row in rows]
                batch[f"{name}_{what}"] = torch.tensor([[fill] * (width - len(c)) + c for c in columns])
        return batch


@pytest.mark.parametrize("fused", [None, False])
def test_a_collator_of_the_originals_layout_gives_the_same_loss(model_folder, tmp_path, fused):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token_id = tokenizer.eos_token_id
    losses = []
    for collator in (None, TwoSided(tokenizer.pad_token_id)):
        args = settings(tmp_path, fused_logps=fused, seed=3)
        trainer = SimPOTrainer(model_folder, args, collator, text_rows(tokenizer), tokenizer=tokenizer)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_collator_of_another_layout_is_refused(model_folder, tmp_path):
    tokenizer = tiny_tokenizer()
    args, rows = settings(tmp_path), text_rows(tokenizer)
    trainer = SimPOTrainer(model_folder, args, lambda rows: {"ids": torch.zeros(2)}, rows, tokenizer=tokenizer)
    with pytest.raises(UserError, match="data_collator: its batch lacks chosen_input_ids"):
        trainer.train()

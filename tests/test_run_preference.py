"""scripts/run_preference.py: a training with each objective, KTO's mismatched pairs, and what is refused."""

import json
import math
import sys

import pytest
import torch
from conftest import losses, make_pairs
from datasets import Dataset, DatasetDict
from pages import blocks
from test_objectives import NAMES

import run_preference
import run_simpo
from simpo.config import DataArguments
from simpo.console import UserError
from simpo.data.mismatch import mismatched_rows, neighbours
from simpo.data.pairs import format_pairs
from simpo.data.tokenize import PairTokenizer
from simpo.objectives import get_objective
from simpo.train.config import PreferenceConfig, config_class
from simpo.train.trainer import PreferenceTrainer

WITH_REFERENCE = sorted(name for name in NAMES if get_objective(name).reference)


def run(monkeypatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run_preference.py", *argv])
    run_preference.main()


@pytest.fixture
def preference(config):
    """Write a YAML that trains with an objective as it comes."""
    return lambda name, **changes: config(**{"objective": name, "beta": None, "gamma_beta_ratio": None} | changes)


def check_same(folder, names, tolerance=1e-4) -> list[dict]:
    first, *others = (losses(folder / name) for name in names)
    assert first
    for other in others:
        for expected, found in zip(first, other, strict=True):
            assert expected.keys() == found.keys()
            for metric, value in expected.items():
                if metric not in ("logits/chosen", "logits/rejected"):
                    assert found[metric] == pytest.approx(value, rel=tolerance, abs=tolerance), metric
    return first


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES))
def test_twenty_steps_on_both_paths(preference, tmp_path, monkeypatch, capsys, name):
    path = preference(name, max_steps=20, gradient_accumulation_steps=1)
    run(monkeypatch, path)
    run(monkeypatch, path, f"--output_dir={tmp_path / 'plain'}", "--fused_logps=false")
    steps = check_same(tmp_path, ["out", "plain"])
    assert len(steps) == 20 and all(map(math.isfinite, (value for step in steps for value in step.values())))
    objective = get_objective(name)
    args = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert isinstance(args, config_class(name)) and args.objective == name
    if objective.reference and name not in ("wpo", "rdpo"):  # weights; lengths
        assert steps[0]["loss"] == pytest.approx(objective.first_loss(args), abs=1e-4)
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["rewards/margins"] > steps[0]["rewards/margins"]
    assert ("sft_loss" in steps[0]) == (objective.defaults.get("sft_weight") == 1)
    assert f"{objective.first_loss(args):.3f} expected" in capsys.readouterr().out
    assert objective.paper in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WITH_REFERENCE if name != "wpo"])
def test_second_copy_adapters_off_and_precomputed_agree(preference, tmp_path, monkeypatch, model_folder, name):
    path = preference(name, use_peft=True, lora_r=4, learning_rate=1e-2, max_steps=3)
    runs = {"adapters": [], "copy": [f"--ref_model_name_or_path={model_folder}"]}
    if not get_objective(name).mismatched:
        runs["computed"] = ["--precompute_ref_log_probs=true"]
    for label, options in runs.items():
        run(monkeypatch, path, f"--output_dir={tmp_path / label}", *options)
    assert abs(check_same(tmp_path, runs)[-1]["rewards/margins"]) > 1e-3  # the policy did move


@pytest.mark.parametrize("name", ["ipo", "cpo", "kto"])
def test_weights_on_top(preference, tmp_path, monkeypatch, name):
    run(monkeypatch, preference(name, use_wpo_weighting=True, max_steps=1))
    run(monkeypatch, preference(name, max_steps=1), f"--output_dir={tmp_path / 'plain'}")
    weighted, plain = losses(tmp_path / "out")[0], losses(tmp_path / "plain")[0]
    assert weighted["rewards/margins"] == pytest.approx(plain["rewards/margins"])
    assert 0 < weighted["weights/min"] < weighted["weights/mean"]
    sft = plain.get("sft_loss", 0)  # not weighted
    if name == "kto":  # weights of mean 1 on equal losses
        assert weighted["weights/mean"] == pytest.approx(1) and weighted["loss"] == pytest.approx(0.5)
    else:
        assert (plain["loss"] - sft) * weighted["weights/min"] <= weighted["loss"] - sft + 1e-5 < plain["loss"] - sft


def test_run_simpo_is_the_same_run(config, preference, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_simpo.py", config(), f"--output_dir={tmp_path / 'simpo'}"])
    run_simpo.main()
    run(monkeypatch, config(objective="simpo"))
    check_same(tmp_path, ["out", "simpo"], tolerance=0)


# ---- KTO's mismatched pairs ---------------------------------------------------------------------------------------


def test_neighbours():
    assert [neighbours(count) for count in (2, 3, 4, 5)] == [[1, 0], [1, 2, 0], [1, 0, 3, 2], [1, 0, 3, 4, 2]]


def test_mismatched_rows_by_hand(tokenizer):
    def row(prompt, chosen, rejected):
        sides = {"chosen": chosen, "rejected": rejected}
        ids = {f"{side}_input_ids": prompt + response for side, response in sides.items()}
        return ids | {f"{side}_labels": [-100] * len(prompt) + response for side, response in sides.items()}

    rules = PairTokenizer(tokenizer, max_length=7, max_prompt_length=3)
    first, second = mismatched_rows([row([1, 2], [3], [4, 5]), row([6, 7, 8, 9], [10, 11], [12, 13, 14, 15])], rules)
    assert first == row([1, 2], [10, 11], [12, 13, 14, 15])
    # the longer prompt leaves room for what it gets here; with five tokens it would be cut to its last three
    assert second == row([6, 7, 8, 9], [3], [4, 5])
    (_, cut) = mismatched_rows([row([1], [2], [3, 4, 5, 6, 7]), row([6, 7, 8, 9], [10], [11])], rules)
    assert cut["rejected_input_ids"] == [7, 8, 9, 3, 4, 5, 6] and cut["rejected_labels"] == [-100] * 3 + [3, 4, 5, 6]
    assert cut["chosen_input_ids"] == [6, 7, 8, 9, 2]


@pytest.fixture(scope="module")
def texts(tokenizer):
    rows = {"train": make_pairs(9), "test": make_pairs(5, offset=50)}
    datasets = DatasetDict({split: Dataset.from_list(some) for split, some in rows.items()})
    return format_pairs(datasets, tokenizer, DataArguments())


def make_trainer(texts, tokenizer, model, folder, name="kto", ref_model=None, **settings) -> PreferenceTrainer:
    args = config_class(name)(
        output_dir=str(folder), max_length=96, max_prompt_length=48, per_device_train_batch_size=2, use_cpu=True,
        per_device_eval_batch_size=4, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
        **settings,
    )  # fmt: skip
    return PreferenceTrainer(
        model, args, train_dataset=texts["train"], eval_dataset=texts["test"], processing_class=tokenizer,
        ref_model=ref_model,
    )  # fmt: skip


def load(folder: str, noise: float = 0.0):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model


def test_reference_point_by_hand(texts, tokenizer, model_folder, tmp_path):
    policy, reference = load(model_folder, noise=0.02), load(model_folder)
    trainer = make_trainer(texts, tokenizer, policy, tmp_path, ref_model=reference)
    rows = [trainer.train_dataset[i] for i in range(2)]
    ratios = []
    for row, other in (rows, rows[::-1]):
        for side in ("chosen", "rejected"):
            start = row[f"{side}_labels"].count(-100)
            response = other[f"{side}_input_ids"][other[f"{side}_labels"].count(-100) :]
            ids = torch.tensor([row[f"{side}_input_ids"][:start] + response])
            labels = torch.tensor([[-100] * start + response])
            with torch.no_grad():
                sums = [
                    trainer.get_batch_logps(model(ids).logits, labels, average_log_prob=False).item()
                    for model in (policy, reference)
                ]
            ratios.append(sums[0] - sums[1])
    expected = sum(ratios) / 4
    found = trainer.reference_point(trainer.model, trainer.data_collator(rows)).item()
    assert abs(expected) > 0.01 and found == pytest.approx(max(0, expected), rel=1e-4)
    # the policy and the reference exchanged: the sign turns, and what is below 0 counts as 0
    trainer = make_trainer(texts, tokenizer, reference, tmp_path, ref_model=policy)
    swapped = trainer.reference_point(trainer.model, trainer.data_collator(rows)).item()
    assert swapped == pytest.approx(max(0, -expected), rel=1e-4) and (found == 0) != (swapped == 0)


def test_a_last_batch_of_one_pair_borrows_another(texts, tokenizer, model_folder, tmp_path):
    policy, reference = load(model_folder, noise=0.02), load(model_folder)
    trainer = make_trainer(texts, tokenizer, reference, tmp_path, ref_model=policy, num_train_epochs=1)
    metrics = trainer.evaluate()  # batches of 4 and 1
    assert math.isfinite(metrics["eval_loss"]) and metrics["eval_kl"] >= 0
    batch = trainer.data_collator([trainer.train_dataset[0]])
    pair = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    point = trainer.reference_point(trainer.model, batch)
    torch.testing.assert_close(point, trainer.reference_point(trainer.model, pair))
    assert trainer.train().global_step == 5  # nine pairs, two at a time


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ipos", {}, "objective: there is no 'ipos'; did you mean ipo?"),
        ("", {}, "objective: there is no ''"),
        (None, {}, "objective: not given; one of alphapo, apo_down"),
        ("cpo", {"tau": 0.5}, "tau is a setting of ipo, not of cpo: leave it out"),
        ("ipo", {"beta": 0.5}, "beta is a setting of alphapo, apo_down, "),
        ("ipo", {"label_smoothing": 0.1}, "label_smoothing is a setting of cpo, dpo, ln_dpo, simpo, wpo, not of ipo"),
        ("ipo", {"loss_type": "sigmoid"}, "loss_type is a setting of simpo, wpo, not of ipo"),
        ("ipo", {"taw": 0.5}, "unknown key 'taw'; did you mean tau?"),
        ("orpo", {"ref_model_name_or_path": "x"}, "ref_model_name_or_path is a setting of apo_down, "),
        ("cpo", {"precompute_ref_log_probs": True}, "precompute_ref_log_probs is a setting of apo_down, "),
        ("kto", {"precompute_ref_log_probs": True}, "precompute_ref_log_probs: not under kto"),
        ("kto", {"per_device_train_batch_size": 1}, "per_device_train_batch_size must be at least 2 under kto"),
        ("kto", {"per_device_eval_batch_size": 1}, "per_device_eval_batch_size must be at least 2 under kto"),
        ("kto", {"desirable_weight": 0}, "desirable_weight (0) must be above 0"),
        ("orpo", {"sft_weight": 0}, "sft_weight (0) must be 1 under orpo"),
        ("rrhf", {"sft_weight": -1}, "sft_weight (-1) must be at least 0"),
        ("rdpo", {"alpha": -0.1}, "alpha (-0.1) must be at least 0"),
        ("ipo", {"tau": 0}, "tau (0) must be above 0"),
        ("dpo", {"beta": ".inf"}, "beta"),
        ("alphapo", {"alpha": ".nan"}, "alpha"),
        ("simpo", {"label_smoothing": 0.5}, "label_smoothing (0.5) must be at least 0 and below 0.5"),
    ],
)
def test_refused(preference, fails, tmp_path, name, changes, message):
    assert message in fails(run_preference.main, preference(name, **changes))
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_it_too(preference, fails, monkeypatch, tmp_path):
    path = preference("ipo", tau=0.5, max_steps=1)
    assert "tau is a setting of ipo, not of dpo" in fails(run_preference.main, path, "--objective=dpo")
    run(monkeypatch, preference(None, max_steps=1), "--objective", "simper")
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_samples"] == 48


def test_run_simpo_trains_simpo_only(config, fails):
    message = fails(run_simpo.main, config(objective="dpo"))
    assert "objective: dpo, where simpo is trained; scripts/run_preference.py" in message


@pytest.mark.parametrize(
    ("argv", "text"), [(["--help"], "alphapo, apo_down"), (["--objective=slic", "--help"], "--delta DELTA")]
)
def test_help(monkeypatch, capsys, argv, text):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *argv)
    assert stop.value.code == 0 and text in " ".join(capsys.readouterr().out.split())


def test_the_page_from_python(texts, tokenizer, model_folder, tmp_path, monkeypatch):
    """The example of docs/objectives.md, as it stands."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/objectives.md", "python")
    names = {"model": load(model_folder), "reference": load(model_folder), "tokenizer": tokenizer}
    exec(code, names | {"pairs": texts["train"]}, names)
    names["args"].max_steps = 1
    assert names["trainer"].train().training_loss == pytest.approx(1)  # 1 / (4 tau^2)


def test_from_python(texts, tokenizer, model_folder, tmp_path):
    with pytest.raises(UserError, match="ipo compares with a reference model: pass ref_model"):
        make_trainer(texts, tokenizer, load(model_folder), tmp_path, name="ipo")
    with pytest.raises(ValueError, match="tau"):
        config_class("ipo")(output_dir=str(tmp_path), max_length=96, max_prompt_length=48, tau=-1)
    with pytest.raises(UserError, match="one pair is not enough"):
        few = DatasetDict(train=texts["train"].select([0]), test=texts["test"])
        make_trainer(few, tokenizer, load(model_folder), tmp_path, ref_model=load(model_folder))
    assert issubclass(config_class("ipo"), PreferenceConfig) and config_class("ipo").__name__ == "IpoConfig"

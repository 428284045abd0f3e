"""The objectives: numbers worked out by hand, recorded values of reference implementations, what they declare."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from simpo.config import DataArguments, H4ArgumentParser, ModelArguments
from simpo.console import UserError
from simpo.objectives import get_objective, objective_names
from simpo.objectives.base import Objective, PairOutputs
from simpo.objectives.losses import dpo_loss, simpo_loss
from simpo.objectives.wpo import wpo_response_weights, wpo_weights
from simpo.train.config import config_class

NAMES = {
    "simpo", "wpo", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo", "rrhf", "slic", "ln_dpo", "apo_zero", "apo_down",
    "simper", "alphapo", "dpop",
}  # fmt: skip
# One pair by hand. Sums of log-probabilities -12 and -10 over 4 and 5 tokens, under the reference -14 and -9:
# means m = -3 and -2; log-ratios a = 2, b = -1, per token 0.5 and -0.2.
PAIR = {
    "chosen": [-12.0], "rejected": [-10.0], "lengths_chosen": [4], "lengths_rejected": [5], "ref_chosen": [-14.0],
    "ref_rejected": [-9.0],
}  # fmt: skip
POINT = 0.5  # KTO's reference point


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


BY_HAND = {  # settings, loss (of the chosen and the rejected response where unpaired), rewards
    "simpo": ({"beta": 2.0, "gamma_beta_ratio": 0.5}, softplus(3), (-6, -4)),  # -2 (-3 + 2 - 0.5)
    "dpo": ({"beta": 0.5}, softplus(-1.5), (1, -0.5)),
    "wpo": ({"beta": 0.5}, softplus(-1.5), (1, -0.5)),
    "ipo": ({"tau": 0.5}, 0.09, (0.25, -0.1)),  # (0.7 - 1)^2
    "cpo": ({"beta": 0.1}, softplus(0.2), (-1.2, -1)),
    "kto": (
        {"beta": 0.4, "undesirable_weight": 2.0}, [1 - sigma(0.4 * 1.5), 2 * (1 - sigma(0.4 * 1.5))], (0.8, -0.4)
    ),
    "orpo": (
        {"beta": 0.5}, 0.5 * softplus(1 + math.log((1 - math.exp(-3)) / (1 - math.exp(-2)))), (-1.5, -1)
    ),
    "rdpo": ({"beta": 0.5, "alpha": 0.1}, softplus(-1.4), (1, -0.5)),  # 0.5 * 3 - 0.1: chosen is one token shorter
    "rrhf": ({}, 1, (-3, -2)),
    "slic": ({"delta": 4.0}, 6, (-3, -2.5)),
    "ln_dpo": ({"beta": 5.0}, softplus(-3.5), (2.5, -1)),
    "apo_zero": ({"beta": 0.5}, 1 - sigma(1) + sigma(-0.5), (1, -0.5)),
    "apo_down": ({"beta": 0.5}, sigma(1) + 1 - sigma(1.5), (1, -0.5)),
    "simper": ({}, math.exp(-2) - math.exp(-3), (math.exp(-3), math.exp(-2))),
    "alphapo": (
        {"beta": 2.0, "gamma_beta_ratio": 0.5, "alpha": 0.5},
        softplus(4 * (math.exp(1.5) - math.exp(1)) + 1),
        (4 * (1 - math.exp(1.5)), 4 * (1 - math.exp(1))),
    ),
    "dpop": ({"beta": 0.3}, softplus(-0.9), (0.6, -0.3)),
}  # fmt: skip


def settings_of(objective: Objective, **changes) -> dict:
    return {setting.name: setting.default for setting in objective.settings} | changes


def make_pairs(objective: Objective, batch: dict, point: float = POINT) -> tuple[PairOutputs, list[torch.Tensor]]:
    """What the objective sees of a batch of sums in float64, and the policy's sums, which take gradients."""
    t = {k: torch.tensor(v, dtype=torch.float64) for k, v in batch.items() if not isinstance(v, str)}
    sums = [t["chosen"].requires_grad_(), t["rejected"].requires_grad_()]
    lengths = [t["lengths_chosen"], t["lengths_rejected"]]
    n, m = lengths if objective.logps == "mean" else (1, 1)
    logps = sums[0] / n, sums[1] / m, *lengths, t["ref_chosen"] / n, t["ref_rejected"] / m
    return PairOutputs(*logps, reference_point=torch.tensor(point, dtype=torch.float64)), sums


def test_the_list():
    assert set(objective_names()) == NAMES == set(BY_HAND)
    for name in NAMES:
        objective = get_objective(name)
        assert objective.name == name and "arxiv.org/abs/" in objective.paper and objective.tags[0] == name


@pytest.mark.parametrize("name", sorted(NAMES))
def test_by_hand(name):
    changes, loss, rewards = BY_HAND[name]
    objective = get_objective(name)
    settings = settings_of(objective, **changes)
    pairs, _ = make_pairs(objective, PAIR)
    result = objective.loss(pairs, **settings)
    assert result.losses.flatten().tolist() == pytest.approx([loss] if not objective.unpaired else loss, rel=1e-12)
    found = (result.chosen_rewards.item(), result.rejected_rewards.item())
    assert found == pytest.approx(rewards, rel=1e-12)
    assert not result.chosen_rewards.requires_grad and not result.rejected_rewards.requires_grad

    def mean_loss(chosen, rejected):
        return objective.loss(make_pairs(objective, PAIR)[0]._replace(chosen_logps=chosen, rejected_logps=rejected),
                              **settings).losses.mean()  # fmt: skip

    assert torch.autograd.gradcheck(mean_loss, (pairs.chosen_logps.detach().requires_grad_(),
                                                pairs.rejected_logps.detach().requires_grad_()))  # fmt: skip


FIRST_LOSSES = {
    "simpo": softplus(0.5), "ipo": 25, "kto": 0.5, "orpo": 0.1 * math.log(2), "rrhf": 0, "slic": 1, "simper": 0,
    "apo_zero": 1, "apo_down": 1, "alphapo": softplus(0.25),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(NAMES))
def test_first_loss(name):
    objective = get_objective(name)
    expected = FIRST_LOSSES.get(name, math.log(2))
    assert objective.first_loss(SimpleNamespace(**settings_of(objective))) == pytest.approx(
        expected, rel=1e-5, abs=1e-9
    )


# ---- reference implementations -----------------------------------------------------------------------------------

SPELLINGS = {  # of the recorded objectives that are another one with settings, and of settings
    "simpo_smooth": ("simpo", {}, {}),
    "simpo_hinge": ("simpo", {"loss_type": "hinge"}, {}),
    "cdpo": ("dpo", {}, {}),
    "ipo": ("ipo", {}, {"beta": "tau"}),
    "dpop": ("dpop", {}, {"lambda": "dpop_lambda"}),
}
RECORDED = [*sorted(NAMES - {"wpo"}), "simpo_smooth", "simpo_hinge", "cdpo"]


@pytest.fixture(scope="module")
def goldens(shared) -> dict:
    return json.loads((shared / "golden/objectives/goldens.json").read_text())


@pytest.mark.parametrize("recorded", RECORDED)
def test_reference_implementations(goldens, recorded):
    """Losses, rewards and gradients to 1e-9 in float64; WPO's weights on top."""
    name, extra, renamed = SPELLINGS.get(recorded, (recorded, {}, {}))
    objective, record = get_objective(name), goldens["objectives"][recorded]
    settings = {renamed.get(key, key): value for key, value in record["parameters"].items()} | extra
    if "gamma" in settings:
        settings["gamma_beta_ratio"] = settings.pop("gamma") / settings["beta"]
    settings = settings_of(objective, **settings)
    assert (objective.logps, objective.reference) == (record["logps"], record["needs_reference"])
    first = objective.first_loss(SimpleNamespace(**settings))
    assert first == pytest.approx(record["first_loss_without_sft"], abs=1e-9)
    for case in record["cases"]:
        batch = goldens["batches"][case["batch"]]
        ratios = [policy - reference for policy, reference in zip(batch["kl"], batch["ref_kl"], strict=True)]
        point = max(0.0, sum(ratios) / len(ratios))
        pairs, sums = make_pairs(objective, batch, point)
        result = objective.loss(pairs, **settings)
        kind = "dmeanloss" if objective.unpaired else "dlosses"
        (result.losses.mean() if objective.unpaired else result.losses.sum()).backward()
        expected = [case["losses_chosen"], case["losses_rejected"]] if objective.unpaired else case["losses"]
        values = [
            (result.losses, expected, 1e-9),
            (result.chosen_rewards, case["rewards_chosen"], 1e-9),
            (result.rejected_rewards, case["rewards_rejected"], 1e-9),
            # near p = 1 the derivative of the odds is of the size 1e4
            (sums[0].grad, case[f"{kind}_dsum_chosen"], 1e-6 if name == "orpo" else 1e-9),
            (sums[1].grad, case[f"{kind}_dsum_rejected"], 1e-6 if name == "orpo" else 1e-9),
        ]
        for found, wanted, tolerance in values:
            wanted = torch.tensor(wanted, dtype=torch.float64)
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        log_weights = [torch.tensor(batch[f"log_weight_{s}"], dtype=torch.float64) for s in ("chosen", "rejected")]
        weigh = wpo_response_weights if objective.unpaired else wpo_weights
        weighted = (result.losses * weigh(*log_weights)).mean().item()
        wanted = case["wpo_kto_loss_halved" if objective.unpaired else "wpo_weighted_mean_loss"]
        assert weighted == pytest.approx(wanted, rel=1e-9)


def test_totals_with_the_sft_term(goldens):
    for batch_name, record in goldens["totals_with_sft_term"].items():
        batch = goldens["batches"][batch_name]
        nll = -sum(batch["chosen"]) / sum(batch["lengths_chosen"])
        totals = {"orpo": "total_response_nll_token_mean"}
        for name, settings in (("cpo", {}), ("orpo", {"beta": 0.5}), ("slic", {}), ("rrhf", {})):
            objective = get_objective(name)
            pairs, _ = make_pairs(objective, batch)
            losses = objective.loss(pairs, **settings_of(objective, **settings)).losses
            total = losses.mean().item() + objective.defaults["sft_weight"] * nll
            assert total == pytest.approx(record[name][totals.get(name, "total")], rel=1e-9)


# ---- what goes wrong easily ---------------------------------------------------------------------------------------


def test_ipo_is_not_that_of_whole_responses():
    objective = get_objective("ipo")
    pairs, _ = make_pairs(objective, PAIR)
    by_sums = (2 + 1 - 1) ** 2  # the log-ratios' difference of the whole responses, less 1 / (2 tau)
    assert abs(objective.loss(pairs, tau=0.5).losses.item() - by_sums) > 1


def test_rdpo_pushes_a_longer_chosen_response_less():
    """The reward r - alpha n has its optimum where r = beta log-ratio + alpha n, up to a constant."""
    objective, slopes = get_objective("rdpo"), []
    for longer in (4, 40):
        pairs, sums = make_pairs(objective, PAIR | {"lengths_chosen": [longer]})
        loss = objective.loss(pairs, beta=0.5, alpha=0.1).losses
        loss.backward()
        slopes.append(sums[0].grad.item())
        assert loss.item() == pytest.approx(softplus(-(1.5 + 0.1 * (longer - 5))))
    assert slopes[0] < slopes[1] < 0


def test_orpo_has_finite_gradients_where_a_response_is_certain():
    objective = get_objective("orpo")
    for logp in (0.0, -1e-9, -1e-7, -1e-4):
        logps = [torch.tensor([value], requires_grad=True) for value in (-1.0, logp)]
        for pair in (logps, logps[::-1]):
            loss = objective.loss(PairOutputs(*pair), beta=0.5).losses
            gradients = torch.autograd.grad(loss, logps)
            assert loss.isfinite().all() and all(g.isfinite().all() for g in gradients)
            assert logp < -1e-6 or gradients[1] == 0


def test_alphapo_with_alpha_0_is_simpo_and_unlikely_text_overflows_nothing():
    chosen, rejected = torch.tensor([-1.0, -0.5]), torch.tensor([-0.7, -30.0])
    settings = {"beta": 2.5, "gamma_beta_ratio": 0.1}
    found = get_objective("alphapo").loss(PairOutputs(chosen, rejected), **settings, alpha=0.0)
    for a, b in zip(found, simpo_loss(chosen, rejected, **settings), strict=True):
        torch.testing.assert_close(a, b)
    assert get_objective("alphapo").loss(PairOutputs(chosen, rejected), **settings, alpha=0.25).losses.isfinite().all()


def test_dpop_starts_as_dpo_and_holds_on_to_the_chosen_response():
    objective, logps = get_objective("dpop"), torch.tensor([-10.0], requires_grad=True)
    start = PairOutputs(logps, torch.tensor([-12.0]), None, None, torch.tensor([-10.0]), torch.tensor([-12.0]))
    objective.loss(start, beta=0.3, dpop_lambda=50.0).losses.backward()
    torch.testing.assert_close(logps.grad, torch.tensor([-0.15]))  # all pairs start on the kink: no slope from it
    fallen = start._replace(chosen_logps=torch.tensor([-11.0]))
    assert objective.loss(fallen, beta=0.3, dpop_lambda=50.0).losses.item() == pytest.approx(softplus(0.3 * 51))


def test_kto_with_a_reference_point_of_0_is_half_of_apo_zero():
    kto, apo = get_objective("kto"), get_objective("apo_zero")
    losses = kto.loss(make_pairs(kto, PAIR, point=0.0)[0], **settings_of(kto)).losses
    assert losses.mean().item() == pytest.approx(apo.loss(make_pairs(apo, PAIR)[0], beta=0.1).losses.item() / 2)


def test_ties_have_no_gradient_under_rrhf():
    logps = torch.tensor([-1.0], requires_grad=True)
    get_objective("rrhf").loss(PairOutputs(logps, torch.tensor([-1.0]))).losses.backward()
    assert logps.grad.item() == 0


def test_response_weights_have_mean_1_on_each_side():
    log_weights = torch.tensor([[-0.3, -0.05, 0.1, -1.2], [-0.2, -0.6, 0.05, -0.4]])
    weights = wpo_response_weights(*log_weights)
    torch.testing.assert_close(weights.mean(dim=1), torch.ones(2))
    torch.testing.assert_close(weights, log_weights.exp() / log_weights.exp().mean(dim=1, keepdim=True))
    torch.testing.assert_close(wpo_response_weights(torch.ones(3), torch.zeros(3)), torch.ones(2, 3))


def test_plain_functions_unpack_as_in_the_original():
    losses, chosen_rewards, rejected_rewards = dpo_loss(*(torch.zeros(2) for _ in range(4)), beta=0.1)
    assert losses.shape == chosen_rewards.shape == rejected_rewards.shape == (2,)


def test_unknown_objectives_name_the_nearest():
    for wrong, near in (("ln-dpo", "ln_dpo"), ("SimPO", "simpo"), ("orop", "orpo")):
        with pytest.raises(UserError, match=f"there is no '{wrong}'; did you mean {near}"):
            get_objective(wrong)
    with pytest.raises(UserError, match=r"there is no 'xyz'; \(alphapo, apo_down"):
        get_objective("xyz")


PAGE = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_page_lists_it_with_its_settings(name):
    objective = get_objective(name)
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
    _, _, _, reference, settings, _, _ = line.split("|")
    assert reference.strip() == ("yes" if objective.reference else "-")
    expected = {setting.name: setting.default for setting in objective.settings} | objective.defaults
    for key, default in expected.items():
        shown = str(default).lower() if isinstance(default, str | bool) else f"{default:g}"
        assert (name, key) == ("wpo", "loss_type") or f"{key} ({shown}" in settings


@pytest.mark.parametrize("path", sorted((ROOT / "training_configs").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_the_objectives_own_configurations(path):
    """Each parses with its objective, 128 pairs a step, and claims nothing that was not published."""
    name, text = path.parent.name, path.read_text(encoding="utf-8")
    if name == "dpo":  # found by the SimPO authors, for run_wpo.py
        return
    parser = H4ArgumentParser((ModelArguments, DataArguments, config_class(name)))
    model_args, _, args = parser.parse([str(path)], {"use_cpu": True})
    assert args.objective == name and model_args.model_name_or_path == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * 4 == 128
    assert args.output_dir.endswith(path.stem) and path.stem == f"llama-3-8b-instruct-{name}"
    assert "best" not in text and ("not tuned" in text or name == "cpo")
    published = {"ipo", "cpo", "kto", "orpo", "rdpo", "rrhf", "slic"}  # rows of the SimPO paper's table
    assert ("The SimPO paper's search" in text) == (name in published)


def test_the_quickstarts_comparison_names_them_all():
    folder = ROOT / "examples" / "quickstart"
    script = (folder / "compare.sh").read_text(encoding="utf-8")
    (names,) = re.findall(r'^all="(.*)"$', script, re.MULTILINE)
    assert {*names.split()} == NAMES - {"simpo"}  # which run.sh trains with
    options = dict(re.findall(r"\[(\w+)\]=(--\S+?)[ )]", script))
    assert {"ipo", "orpo", "alphapo"} == {*options}
    for name in names.split():
        parser = H4ArgumentParser((ModelArguments, DataArguments, config_class(name)))
        argv = [str(folder / "preference.yaml"), f"--objective={name}", *options.get(name, "").split()]
        _, _, args = parser.parse(argv, {"use_cpu": True})
        assert args.objective == name and args.learning_rate == 1e-4

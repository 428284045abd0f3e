"""The objectives against numbers worked out by hand, at the shapes the trainer passes."""

import math

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutput

from simpo.logps.plain import get_batch_logps, plain_logps
from simpo.objectives.losses import dpo_loss, simpo_loss, wpo_weights

# beta (chosen - rejected - ratio): 2 (-1 + 2 - 0.5) = 1 and 2 (-3 + 1.5 - 0.5) = -4
CHOSEN, REJECTED = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.5])


def test_sigmoid():
    result = simpo_loss(CHOSEN, REJECTED, beta=2.0, gamma_beta_ratio=0.5)
    # log(1 + e^-1) = 0.3132617, log(1 + e^4) = 4.0181499
    torch.testing.assert_close(result.losses, torch.tensor([0.3132617, 4.0181499]))
    torch.testing.assert_close(result.chosen_rewards, torch.tensor([-2.0, -6.0]))
    torch.testing.assert_close(result.rejected_rewards, torch.tensor([-4.0, -3.0]))


def test_label_smoothing():
    result = simpo_loss(CHOSEN, REJECTED, beta=2.0, gamma_beta_ratio=0.5, label_smoothing=0.1)
    # 0.9 * 0.3132617 + 0.1 * 1.3132617 and 0.9 * 4.0181499 + 0.1 * 0.0181499
    torch.testing.assert_close(result.losses, torch.tensor([0.4132617, 3.6181499]))


def test_hinge():
    result = simpo_loss(CHOSEN, REJECTED, beta=2.0, gamma_beta_ratio=0.5, loss_type="hinge")
    torch.testing.assert_close(result.losses, torch.tensor([0.0, 5.0]))


def test_gradients_of_both_sides_are_opposite_and_rewards_have_none():
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    result = simpo_loss(chosen, rejected, beta=2.0, gamma_beta_ratio=0.5)
    result.losses.sum().backward()
    # d/dchosen = -beta sigma(-beta h) = -2 sigma(-1) and -2 sigma(4)
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.5378828, -1.9640276]))
    torch.testing.assert_close(rejected.grad, -chosen.grad)
    assert not result.chosen_rewards.requires_grad and not result.rejected_rewards.requires_grad


def test_logps_by_hand():
    # Two tokens; the second label has probability e^2 / (e^2 + 2), the third 1/3, the fourth is masked.
    logits = torch.zeros(1, 4, 3)
    logits[0, 0, 1] = 2.0
    labels = torch.tensor([[-100, 1, 2, -100]])
    first, second = 2 - math.log(math.e**2 + 2), -math.log(3)
    torch.testing.assert_close(get_batch_logps(logits, labels), torch.tensor([(first + second) / 2]))
    torch.testing.assert_close(get_batch_logps(logits, labels, average_log_prob=False), torch.tensor([first + second]))


def test_logps_are_float32_under_bfloat16():
    torch.manual_seed(0)
    logits = torch.randn(2, 50, 1000).bfloat16()
    labels = torch.randint(0, 1000, (2, 50))
    result = get_batch_logps(logits, labels, average_log_prob=False)
    exact = logits.double()[:, :-1].log_softmax(-1).gather(2, labels[:, 1:, None]).squeeze(2).sum(1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, rtol=1e-6, atol=0)


def test_logps_refuse_other_shapes_and_models():
    with pytest.raises(ValueError, match="differ"):
        get_batch_logps(torch.zeros(1, 4, 3), torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="encoder-decoder"):
        get_batch_logps(torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.long), is_encoder_decoder=True)


def test_padding_changes_no_result(model_folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    ids = torch.randint(5, 300, (1, 20))
    labels = ids.clone()
    labels[:, :8] = -100
    alone = plain_logps(model, ids, torch.ones_like(ids), labels, with_weights=True)
    pad = torch.full((1, 9), 3)
    padded = plain_logps(
        model,
        torch.cat([ids, pad], 1),
        torch.cat([torch.ones_like(ids), torch.zeros_like(pad)], 1),
        torch.cat([labels, torch.full_like(pad, -100)], 1),
        with_weights=True,
    )
    for name in ("sums", "lengths", "mean_logits", "log_weights"):
        torch.testing.assert_close(getattr(padded, name), getattr(alone, name))
    assert alone.lengths.tolist() == [12]
    torch.testing.assert_close(alone.means, alone.sums / 12)


def test_dpo():
    result = dpo_loss(
        torch.tensor([-10.0, -20.0]), torch.tensor([-12.0, -15.0]), torch.tensor([-11.0, -18.0]),
        torch.tensor([-11.0, -16.0]), beta=0.5,
    )  # fmt: skip
    # h = (2 - 0) and (-5 + 2); log(1 + e^-1) = 0.3132617, log(1 + e^1.5) = 1.7014133
    torch.testing.assert_close(result.losses, torch.tensor([0.3132617, 1.7014133]))
    torch.testing.assert_close(result.chosen_rewards, torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(result.rejected_rewards, torch.tensor([-0.5, 0.5]))
    smooth = dpo_loss(*(torch.tensor([v]) for v in (-10.0, -12.0, -11.0, -11.0)), beta=0.5, label_smoothing=0.2)
    torch.testing.assert_close(smooth.losses, torch.tensor([0.8 * 0.3132617 + 0.2 * 1.3132617]))


def test_wpo_weights():
    weights = wpo_weights(torch.tensor([-0.5, 0.4]), torch.tensor([-0.25, -0.1]))
    torch.testing.assert_close(weights, torch.tensor([0.4723666, 1.0]))  # e^-0.75; e^0.3 is clamped


class Fixed(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, **_):
        return CausalLMOutput(logits=self.logits)


def test_log_weights_by_hand_and_without_gradient():
    # p = (1/2, 1/4, 1/4) at the only label token, sum p^2 = 3/8: log(1/4) - log(3/8) = log(2/3)
    model = Fixed(torch.tensor([[[2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]).log())
    responses = plain_logps(
        model, torch.tensor([[0, 1]]), torch.ones(1, 2), torch.tensor([[-100, 1]]), with_weights=True
    )
    torch.testing.assert_close(responses.log_weights, torch.tensor([math.log(2 / 3)]))
    assert not responses.log_weights.requires_grad and responses.sums.requires_grad
    assert not wpo_weights(responses.sums, responses.sums).requires_grad


def test_log_weights_of_a_uniform_model_are_zero():
    """Sampled alignment: a token as likely as the model's average token counts fully."""
    model = Fixed(torch.zeros(1, 6, 11))
    ids = torch.arange(6)[None]
    responses = plain_logps(model, ids, torch.ones(1, 6), ids, with_weights=True)
    torch.testing.assert_close(responses.log_weights, torch.zeros(1), atol=1e-6, rtol=0)

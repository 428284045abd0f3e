"""What flash attention is called with, and what FlexAttention's mask lets through, for rows of branches; by hand."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from simpo.logps.branches import Rows
from simpo.logps.flex import Flex
from simpo.logps.varlen import lay_out_calls


def test_calls_by_hand():
    """Two rows: prompt 2, chosen 1, rejected 2 and padding; no prompt, chosen 3 and rejected 1."""
    (prompts, responses), order = lay_out_calls(Rows([[(2, 1, 2)], [(0, 3, 1)]], 6, torch.device("cpu")))
    assert prompts.queries.tolist() == prompts.keys.tolist() == [0, 1, 6, 7, 8, 9]
    assert prompts.limits["cu_seq_lens_q"].tolist() == prompts.limits["cu_seq_lens_k"].tolist() == [0, 2, 5, 6]
    assert responses.queries.tolist() == [2, 3, 4] and responses.keys.tolist() == [0, 1, 2, 0, 1, 3, 4]
    assert responses.limits["cu_seq_lens_q"].tolist() == [0, 1, 3]
    assert responses.limits["cu_seq_lens_k"].tolist() == [0, 3, 7]
    assert (responses.limits["max_length_q"], responses.limits["max_length_k"]) == (2, 4)
    assert order.tolist() == [0, 1, 6, 7, 8, 9, 2, 3, 4, 5, 9, 9]


def test_calls_of_three_responses_by_hand():
    """Prompt 2 with 1, 0 and 2; then a prompt of 1 by itself, in the same row."""
    (prompts, responses), order = lay_out_calls(Rows([[(2, 1, 0, 2), (1,)]], 6, torch.device("cpu")))
    assert prompts.queries.tolist() == prompts.keys.tolist() == [0, 1, 5]
    assert responses.queries.tolist() == [2, 3, 4] and responses.keys.tolist() == [0, 1, 2, 0, 1, 3, 4]
    assert responses.limits["cu_seq_lens_q"].tolist() == [0, 1, 3]
    assert order.tolist() == [0, 1, 3, 4, 5, 2]


def test_block_mask_by_hand():
    """Prompt 2, chosen 2, rejected 1 and one of padding, under a window of 3 tokens."""
    mask = Flex(Rows([[(2, 2, 1)]], 6, torch.device("cpu")), 3, "flex_attention").mask
    seen = torch.stack([mask.mask_mod(torch.tensor(0), None, torch.tensor(i), torch.arange(6)) for i in range(5)])
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
    ]


@pytest.mark.parametrize("window", [None, 3])
def test_a_block_mask_can_be_compiled(window):
    """FlexAttention's compiler takes no operation in place, on any device."""
    mask = Flex(Rows([[(2, 2, 1)]], 6, torch.device("cpu")), window, "flex_attention").mask
    traced = make_fx(mask.mask_mod)(*torch.zeros(4, 1, dtype=torch.int64))
    calls = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert calls and not [call for call in calls if call._schema.is_mutable]

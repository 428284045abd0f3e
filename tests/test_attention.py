"""Attention by spans: under names of its own, against masks, and nowhere but in the fast path."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from model_families import MIXED
from simpo.console import UserError
from simpo.logps.attention import BRANCHED, attending_by_spans, attention_name, branched_mask, branched_name
from simpo.logps.branches import Rows
from simpo.logps.fused import FastPath, choose_path, fast_logps
from simpo.logps.pieces import Pieces
from simpo.logps.plain import plain_logps
from simpo.train.config import config_class
from tiny_models import tiny_model

PATH = FastPath(True, True, True)


@pytest.fixture(params=["mistral sdpa", "gemma2 eager"])
def loaded(request, tmp_path):
    family, attention = request.param.split()
    folder = tiny_model(tmp_path / "model", family, initializer_range=0.2, sliding_window=7)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32).eval()


def test_it_replaces_nothing():
    """(All of simpo that trains is imported here.)"""
    names = {branched_name(own) for own in ("sdpa", "eager")}
    attention, masks = AttentionInterface(), AttentionMaskInterface()
    assert attention["sdpa"] is sdpa_attention_forward and "eager" not in attention
    assert masks["sdpa"] is sdpa_mask and masks["eager"] is eager_mask
    assert names < set(attention) & set(masks)


def test_another_sdpa_changes_nothing(monkeypatch, tmp_path):
    """Another library's "sdpa" serves the model outside of the fast path, and has no part in it."""
    folder = tiny_model(tmp_path / "model", "llama", initializer_range=0.2)
    calls = []

    def foreign(*args, **kwargs):
        calls.append(kwargs.keys())
        return sdpa_attention_forward(*args, **kwargs)

    first = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected, plain = fast_logps(first, first, PATH, **MIXED), plain_logps(first, **MIXED)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", foreign)
    fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for model in (first, fresh):
        calls.clear()
        torch.testing.assert_close(fast_logps(model, model, PATH, **MIXED), expected, rtol=0, atol=0)
        assert not calls
        torch.testing.assert_close(plain_logps(model, **MIXED), plain, rtol=0, atol=0)
        assert calls


def test_generating_and_saving_are_as_before(loaded, tmp_path):
    ids, mask = MIXED["input_ids"][:2, :12].clone(), torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0  # padded on the left
    name = attention_name(loaded.config)

    def generated(model):
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        return model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **options)

    before = generated(loaded)
    loaded.save_pretrained(tmp_path / "before")
    fast_logps(loaded, loaded, PATH, **MIXED)
    assert loaded.config._attn_implementation == BRANCHED[name] and attention_name(loaded.config) == name
    after = generated(loaded)
    assert after.sequences.tolist() == before.sequences.tolist()
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "after")
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "after" / file).read_text() == (tmp_path / "before" / file).read_text()
    assert "simpo" not in json.dumps(AutoModelForCausalLM.from_pretrained(tmp_path / "after").config.to_dict())


def test_a_failed_pass_leaves_nothing_behind(loaded):
    before = plain_logps(loaded, **MIXED).sums
    with pytest.raises(RuntimeError), attending_by_spans(loaded, Rows([[(1, 1, 1)]], 3, torch.device("cpu"))):
        loaded(MIXED["input_ids"].float())
    torch.testing.assert_close(plain_logps(loaded, **MIXED).sums, before, rtol=0, atol=0)


def test_masks_of_pieces_by_hand(loaded):
    """One pair of prompt 3, chosen 2 and rejected 1 under a window of 3 tokens; nothing to mask under one of 5."""
    with attending_by_spans(loaded, Rows([[(3, 2, 1)]], 6, torch.device("cpu"))):
        pieces, wide, full = (
            branched_mask(own="sdpa", device=torch.device("cpu"), **size)
            for size in ({"local_size": 3}, {"local_size": 5}, {})
        )
        assert isinstance(pieces, Pieces) and pieces.spans == [[(3, 2, 1)]]
        prompt, chosen, rejected = pieces.masks[0]
        assert prompt is None
        assert chosen.int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
        assert rejected.int().tolist() == [[0, 1, 1, 1]]
        assert wide.masks == full.masks == [[None, None, None]]
        with pytest.raises(NotImplementedError, match="more than causal"):
            branched_mask(own="sdpa", device=torch.device("cpu"), use_vmap=True)


def test_attention_that_cannot_be_set(loaded, monkeypatch):
    """A model with code of its own, whose attention does not look its function up: its rows stay apart."""
    monkeypatch.setattr(type(loaded), "_can_set_attn_implementation_cached_value", False, raising=False)
    args = config_class("simpo")(output_dir="unused", use_cpu=True, max_length=64, max_prompt_length=32)
    assert choose_path(loaded, args) == FastPath(True, False, False)
    with pytest.raises(NotImplementedError, match="does not let its attention be set"):
        fast_logps(loaded, loaded, PATH, **MIXED)
    with pytest.raises(UserError, match="shared_prompt, padding_free: not with"):
        choose_path(loaded, replace(args, shared_prompt=True))

"""Tiny reward models made on the spot, with random weights: decoders, encoders, ArmoRM and PairRM."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

from rewards.armorm import ArmoRM
from rewards.pairrm import PairRM
from tiny_models import CORPUS, tiny_tokenizer

DECODERS = {"llama": LlamaConfig, "mistral": MistralConfig, "gemma": GemmaConfig, "gemma2": Gemma2Config}
DECODERS["qwen2"] = Qwen2Config
ENCODERS = {"bert": BertConfig, "electra": ElectraConfig, "roberta": RobertaConfig}
POSITIONS = 64
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_classifier(folder: Path, family: str = "llama", num_labels: int = 1, pad: bool = True, **config) -> str:
    """A decoder with a classification head and the Llama-3-like tokenizer; `pad` false: no pad token in its config."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    settings = SMALL | {
        "vocab_size": len(tokenizer) + 16,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_labels": num_labels,
        "pad_token_id": len(tokenizer) if pad else None,
        "initializer_range": 0.3,
    }
    model = AutoModelForSequenceClassification.from_config(DECODERS[family](**(settings | config)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_armorm(folder: Path, **config) -> str:
    """ArmoRM on the Llama-3-like tokenizer, whose ids need a gating pattern of their own."""
    tokenizer = tiny_tokenizer()
    header = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    settings = SMALL | {
        "vocab_size": len(tokenizer) + 1,
        "pad_token_id": len(tokenizer),
        "num_labels": 1,
        "num_objectives": 19,
        "gating_temperature": 10,
        "gating_hidden_dim": 24,
        "gating_n_hidden": 3,
        "gating_pattern": tokenizer(header, add_special_tokens=False)["input_ids"],
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    model = ArmoRM(LlamaConfig(**(settings | config)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def pair_tokenizer(segments: bool = False) -> PreTrainedTokenizerFast:
    """A WordPiece-free stand-in for DeBERTa's tokenizer: [CLS] text [SEP], and PairRM's four markers.

    Args:
        segments: give the second text of a pair, and the [SEP] after it, the segment id 1, as BERT's tokenizer does.
    """
    core = Tokenizer(models.BPE(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    specials += ["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    second = "$B:1 [SEP]:1" if segments else "$B [SEP]"
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=f"[CLS] $A [SEP] {second}", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    if segments:
        names["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=specials[5:], clean_up_tokenization_spaces=False, **names
    )


def deberta_config(tokenizer: PreTrainedTokenizerFast, **config) -> DebertaV2Config:
    return DebertaV2Config(
        vocab_size=len(tokenizer),
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        type_vocab_size=0,
        max_position_embeddings=512,
        pad_token_id=0,
        initializer_range=0.3,
        **(SMALL | config),
    )


def tiny_deberta(folder: Path) -> str:
    tokenizer = pair_tokenizer()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(deberta_config(tokenizer, num_labels=1))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_encoder(folder: Path, family: str, positions: int = POSITIONS) -> str:
    """An encoder with 64 learned positions (RoBERTa: from the pad id on), and segment ids but for RoBERTa."""
    tokenizer = pair_tokenizer(segments=family != "roberta")
    settings = SMALL | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": positions + (family == "roberta"),
        "type_vocab_size": 2 - (family == "roberta"),
        "num_labels": 1,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(ENCODERS[family](**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_pairrm(folder: Path, hf_layout: bool = True) -> str:
    """PairRM as in its -hf repository, or as in the first one, whose config.json only names the backbone."""
    tokenizer = pair_tokenizer()
    ids = dict(zip(("source", "cand1", "cand2", "cand"), range(5, 9), strict=True))
    config = deberta_config(tokenizer, n_tasks=1, **{f"{name}_prefix_id": i for name, i in ids.items()})
    torch.manual_seed(0)
    PairRM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not hf_layout:
        backbone = folder / "backbone"
        deberta_config(tokenizer, architectures=["DebertaV2Model"]).save_pretrained(backbone)
        raw = {"ranker_type": "pairranker", "model_type": "deberta", "model_name": str(backbone), "n_tasks": 1}
        (folder / "config.json").write_text(json.dumps(raw))
    return str(folder)

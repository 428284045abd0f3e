"""Merge a LoRA adapter into its base: one folder with a whole model, as decoding, evaluation and others want it.

    python scripts/merge.py outputs/lora outputs/lora-merged

Config, safetensors weights, tokenizer and chat template come along. OUTPUT appears when everything is written: after a
stop, the same command does it again; once it is there, it says so. What was trained on 4-bit weights (QLoRA) is merged
into the weights that these were made of.
"""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from simpo.config import ModelArguments
from simpo.console import ArgumentParser, UserError, command, say
from simpo.files import flush_to_disk, weights_digest, write_json, writing
from simpo.folder import LOCK, check_settings, lock_folder
from simpo.model_files import check_model, check_tokenizer, check_whole_model
from simpo.train.weights import base_model, check_vocabulary, is_adapter_model, load_base, merge_adapter

RECORD = "merged_from.json"
DTYPES = ("bfloat16", "float16", "float32")


@command
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("adapter", help="folder or hub name of the adapter")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--base_model", help="folder or hub name of the base, when it is not where the adapter says")
    parser.add_argument("--dtype", choices=DTYPES, help="precision of the merged weights (default: the base's)")
    args = parser.parse_args()

    check_model(args.adapter, "adapter")
    if not is_adapter_model(args.adapter):
        raise UserError(f"adapter: {args.adapter} holds no adapter (no adapter_config.json can be read there)")
    if args.base_model:
        check_whole_model(args.base_model, "base_model")
        base, key = args.base_model, "base_model"
    else:
        base, _, key = base_model(args.adapter, ModelArguments(), "adapter")
    record = {
        "adapter": args.adapter,
        "adapter_weights": weights_digest(args.adapter),
        "base_model": base,
        "base_weights": weights_digest(base),
        "dtype": args.dtype,
    }
    if args.output.is_file():
        raise UserError(f"output: {args.output} is a file; name a folder")
    if args.output.is_dir() and any(args.output.iterdir()):
        check_settings(args.output / RECORD, record, has_output=True)
        say(f"already merged: {args.output}")
        return
    refuse_quantized(base, key)
    model = merge_adapter(load_base(base, key, dtype=args.dtype or "auto"), args.adapter)
    tokenizer = load_tokenizer(args.adapter, base)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)

    write_folder(args.output, model, tokenizer, record)
    say(f"merged {args.adapter} into {base}: {args.output}")


def write_folder(
    output: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: dict[str, str | None]
) -> None:
    """Write the whole folder or nothing: beside its place, then renamed.

    Raises:
        UserError: it cannot be written, or another merge is writing it.
    """
    beside = output.with_name(f"{output.name}.merging")
    with lock_folder(beside), writing(beside):
        for left_over in beside.iterdir():  # of a merge that was stopped
            if left_over.name != LOCK:
                left_over.unlink()
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        write_json(beside / RECORD, record)
        for file in beside.iterdir():
            flush_to_disk(file)
    (beside / LOCK).unlink()
    beside.replace(output)
    flush_to_disk(output.parent)


def refuse_quantized(base: str, key: str) -> None:
    """Quantized weights cannot take an update that is smaller than their steps.

    Raises:
        UserError: the base is quantized, or there is none.
    """
    try:
        config = AutoConfig.from_pretrained(base).to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{key}: cannot load {base}; name another place with --base_model: {error}") from error
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise UserError(f"{key}: {base} holds quantized weights ({method}); name what it was made of with --base_model")


def load_tokenizer(adapter: str, base: str) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with the adapter, with the chat template it was trained on; else the base's.

    Raises:
        UserError: neither has one that can be read.
    """
    problem: Exception | None = None
    for name in (adapter, base):
        check_tokenizer(name, "adapter" if name == adapter else "base_model")
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            problem = error
    raise UserError(f"adapter: neither {adapter} nor {base} has a tokenizer: {problem}")


if __name__ == "__main__":
    main()

"""Ask a trained or released model one question.

    python generate.py princeton-nlp/gemma-2-9b-it-SimPO "What's the difference between llamas and alpacas?"
    python generate.py outputs/quickstart/simpo "Name three colours." --temperature 0.7

MODEL is a folder or a name on the hub: a whole model, or a LoRA adapter, which is merged into its base in memory. A
model without a chat template goes on with the prompt as it is written.
"""

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TextStreamer

from simpo.chat.ids import ContentGuard, chat_ids, with_one_bos
from simpo.config import ModelArguments
from simpo.console import ArgumentParser, UserError, command, warn
from simpo.model_files import check_tokenizer
from simpo.train.weights import check_vocabulary, get_model_config, load_causal_lm


@command
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("prompt")
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    args = parser.parse_args()
    if args.max_new_tokens < 1:
        raise UserError(f"max_new_tokens: must be at least 1, got {args.max_new_tokens}")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"temperature: must be 0 or more, got {args.temperature}")
    if not 0 < args.top_p <= 1:
        raise UserError(f"top_p: must lie in (0, 1], got {args.top_p}")

    trust = args.trust_remote_code
    model_args = ModelArguments(model_name_or_path=args.model, trust_remote_code=trust)
    config = get_model_config(model_args).get_text_config()
    check_tokenizer(args.model, "model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=trust)
    except Exception as error:  # the Rust library raises bare Exceptions
        raise UserError(f"model: cannot load the tokenizer of {args.model}: {error}") from error
    check_vocabulary(tokenizer, config.vocab_size)
    ids = prompt_ids(tokenizer, args.prompt)
    room = getattr(config, "max_position_embeddings", None) or len(ids) + args.max_new_tokens
    if not ids:
        raise UserError("prompt: is empty")
    if len(ids) >= room:
        raise UserError(f"prompt: {len(ids)} tokens, where the model reads {room}")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_causal_lm(model_args, dtype="auto", trust_remote_code=trust).to(device).eval()
    inputs = torch.tensor([ids], device=device)
    torch.manual_seed(args.seed)
    sampling = {"temperature": args.temperature, "top_p": args.top_p} if args.temperature > 0 else {}
    model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=min(args.max_new_tokens, room - len(ids)),
        do_sample=args.temperature > 0,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **sampling,
    )


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The tokens that decoding feeds for a user's message; without a chat template, those of the text."""
    if tokenizer.chat_template is None:
        warn("the model has no chat template: it goes on with the prompt as it is written")
        return tokenizer(prompt)["input_ids"]
    _, ids = chat_ids(ContentGuard(tokenizer), [{"role": "user", "content": prompt}], add_generation_prompt=True)
    return with_one_bos(ids, tokenizer.bos_token_id)


if __name__ == "__main__":
    main()

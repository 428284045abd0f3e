"""Ask a trained or released model one question.

python generate.py princeton-nlp/gemma-2-9b-it-SimPO "What's the difference between llamas and alpacas?"
python generate.py outputs/quickstart/simpo "Name three colours." --temperature 0.7
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from simpo.console import UserError, command


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub name or folder")
    parser.add_argument("prompt")
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto").to(device)
    except OSError as error:
        raise UserError(f"cannot load {args.model}: {error}") from error
    messages = [{"role": "user", "content": args.prompt}]
    # The template writes BOS itself: token ids straight from it, so that there is exactly one.
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(device)
    torch.manual_seed(args.seed)
    sampling = {"temperature": args.temperature, "top_p": args.top_p} if args.temperature > 0 else {}
    model.generate(
        **inputs,
        max_new_tokens=args.max_new_tokens,
        do_sample=args.temperature > 0,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **sampling,
    )


if __name__ == "__main__":
    main()

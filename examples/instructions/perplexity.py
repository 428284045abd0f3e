"""Perplexity of a model on text that has nothing to do with its training: this project's pages.

    python perplexity.py outputs/instructions/models/simpo --output perplexity_after.json

Writes {perplexity, tokens}: the exponential of the mean negative log-likelihood over windows of 512 tokens.
"""

import argparse
from pathlib import Path

from simpo.console import command, say
from simpo.files import write_json

PAGES = sorted((Path(__file__).resolve().parent.parent.parent / "docs").glob("*.md"))
WINDOW, WINDOWS = 512, 8


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    tokenized = AutoTokenizer.from_pretrained(args.model)(text, return_tensors="pt", verbose=False)
    ids = tokenized["input_ids"][0, : WINDOW * WINDOWS]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    windows = ids.view(WINDOWS, 1, WINDOW)
    with torch.no_grad():
        loss = torch.stack([model(input_ids=window, labels=window).loss for window in windows]).mean()
    write_json(args.output, {"perplexity": loss.exp().item(), "tokens": ids.numel()})
    say(f"{args.model}: perplexity {loss.exp():.2f}")


if __name__ == "__main__":
    main()

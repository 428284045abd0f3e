"""What keeps a folder from being loaded as a model or tokenizer, said before anything is loaded.

Weights are read from safetensors only: the older pickled files can run code when they are opened.
"""

import json
from pathlib import Path

from simpo.console import UserError

LFS_POINTER = b"version https://git-lfs"
POINTER = "is a Git LFS pointer, not the file itself: run `git lfs pull` there, or download the file again"
CONFIGS = ("config.json", "adapter_config.json")
MODEL_TEXTS = ("config.json", "generation_config.json")
TOKENIZER_TEXTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")
TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "merges.txt", "vocab.txt", "chat_template.jinja")
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLED = ("pytorch_model*.bin", "adapter_model.bin", "*.pth", "*.pt")


def is_adapter_folder(name: str) -> bool:
    """Whether a folder holds a PEFT adapter (LoRA) instead of a whole model."""
    return (Path(name) / "adapter_config.json").is_file()


def merge_command(adapter: str) -> str:
    """What a user types to make a whole model of an adapter."""
    return f"python scripts/merge.py {adapter} {adapter.rstrip('/')}-merged"


def check_whole_model(name: str, key: str) -> None:
    """As `check_model`, for programs that cannot take an adapter.

    Raises:
        UserError: see there; or it is an adapter.
    """
    check_model(name, key)
    if is_adapter_folder(name):
        raise UserError(f"{key}: {name} is a LoRA adapter: merge it into its base first ({merge_command(name)})")


def check_model(name: str, key: str) -> None:
    """Refuse a folder that holds no whole model or adapter; names on the hub pass.

    Args:
        key: the setting that named it, for the message.

    Raises:
        UserError: a file is missing, cut off, a Git LFS pointer or not JSON, or the weights are pickled.
    """
    folder = Path(name)
    if folder.is_file():
        raise UserError(f"{key}: {name} is a file; name the model's folder")
    if not folder.is_dir():
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # no name on the hub
            raise UserError(f"{key}: there is no folder {name}")
        return
    adapter = is_adapter_folder(name)
    if not adapter and not (folder / "config.json").exists():
        inside = sorted({path.parent.name for name in CONFIGS for path in folder.glob(f"*/{name}")})
        hint = f"; it holds {', '.join(inside)}: name one of those" if inside else ""
        raise UserError(f"{key}: {folder} holds no model (no config.json){hint}")
    check_texts(folder, ("adapter_config.json",) if adapter else MODEL_TEXTS, key)
    for file in weight_files(folder, adapter, key):
        if flaw := safetensors_flaw(file):
            raise UserError(f"{key}: {file} {flaw}")


def check_tokenizer(name: str, key: str) -> None:
    """Refuse a folder whose tokenizer files are damaged; names on the hub pass.

    Raises:
        UserError: a file is a Git LFS pointer or not JSON.
    """
    if Path(name).is_dir():
        check_texts(Path(name), TOKENIZER_TEXTS, key)
        for file in TOKENIZER_FILES:
            if (Path(name) / file).is_file() and is_pointer(Path(name) / file):
                raise UserError(f"{key}: {Path(name) / file} {POINTER}")


def is_pointer(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(LFS_POINTER)) == LFS_POINTER


def check_texts(folder: Path, names: tuple[str, ...], key: str) -> None:
    for file in (folder / name for name in names):
        if not file.is_file():
            continue
        if is_pointer(file):
            raise UserError(f"{key}: {file} {POINTER}")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{key}: {file} is not JSON ({error}); was it cut off? Download it again") from error
        if not isinstance(content, dict):
            raise UserError(f"{key}: {file} must hold a JSON object, found {type(content).__name__}; download it again")


def weight_files(folder: Path, adapter: bool, key: str) -> list[Path]:
    """The safetensors files that loading the folder would read.

    Raises:
        UserError: there are none, or the index names one that is missing.
    """
    single, index = folder / (ADAPTER_WEIGHTS if adapter else WEIGHTS), folder / INDEX
    if single.is_file():
        return [single]
    if not adapter and index.is_file():
        check_texts(folder, (INDEX,), key)
        content = json.loads(index.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
            raise UserError(f"{key}: {index} has no weight_map; download it again")
        shards = sorted(set(content["weight_map"].values()))
        if missing := [shard for shard in shards if not (folder / shard).is_file()]:
            raise UserError(
                f"{key}: {index} names {missing[0]}, which is not in the folder ({len(missing)} of {len(shards)} files "
                "are missing): download them"
            )
        return [folder / shard for shard in shards]
    if pickled := sorted(path.name for pattern in PICKLED for path in folder.glob(pattern)):
        raise UserError(
            f"{key}: {folder} holds pickled weights only ({pickled[0]}), which can run code when they are opened; if "
            f"you trust them, convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    raise UserError(f"{key}: {folder} holds no weights ({single.name} is missing)")


def safetensors_flaw(file: Path) -> str | None:
    """Say what keeps a safetensors file from being whole; None when nothing does.

    The file is a length of 8 bytes, a JSON header of that length, and the tensors, whose places the header names.
    """
    if is_pointer(file):
        return POINTER
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if not 0 < length <= size - 8:
            return f"is cut off or no safetensors file ({size} bytes): download it again"
        try:
            header = json.loads(content.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, LookupError):
            return "has a damaged header: download it again"
    whole = 8 + length + max(ends, default=0)
    return None if size == whole else f"is cut off or damaged ({size} bytes of {whole}): download it again"

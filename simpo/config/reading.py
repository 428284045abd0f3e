"""Reading of YAML files and command lines into keys and values."""

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from simpo.console import UserError

shortened = reprlib.Repr()
shortened.maxstring = shortened.maxother = 80
brief = shortened.repr  # values in messages, whatever their size


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {brief(key.value)} stands twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_yaml(text: str, source: str) -> Any:
    """Read YAML.

    Raises:
        UserError: not YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, Loader=UniqueKeyLoader)
    # PyYAML's own reading of numbers, dates, tags and deep nesting raises more than YAMLError
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        problem = str(error).replace('in "<unicode string>", ', "")
        raise UserError(f"{source}: not valid YAML: {problem}") from error


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: no such file, not YAML, not a mapping at the top level, or a key is no text or stands twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such configuration file") from error
    except (OSError, ValueError) as error:  # a folder, a name that is too long, not UTF-8
        raise UserError(f"{brief(path)}: cannot be read as a configuration file: {type(error).__name__}") from error
    content = load_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold `key: value` lines, found {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {brief(key)} is not text")
    return content


def split_overrides(argv: Sequence[str]) -> dict[str, Any]:
    """Split `--key=value`, `--key value`, `--key v1 v2` and a bare `--flag` into strings, lists and True.

    Of a key that stands twice the last one counts, as with other programs: scripts put their users' options last.

    Raises:
        UserError: a word that belongs to no key.
    """
    overrides: dict[str, Any] = {}
    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        if not token.startswith("--"):
            raise UserError(f"command line: expected --key=value, found {brief(token)} (quote what has spaces)")
        key, equals, value = token[2:].partition("=")
        if not equals:
            words = []
            while position < len(argv) and not argv[position].startswith("--"):
                words.append(argv[position])
                position += 1
            value = words if len(words) > 1 else words[0] if words else True
        overrides[key.replace("-", "_")] = value
    return overrides

"""README.md and the other pages: every command they show goes through bash and its program's own reading of the command
line, and is run or said not to be (pages.py); links lead somewhere, settings exist."""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT
from pages import PAGES, PARSED_ONLY, PYTHON, RUN, block, blocks

from simpo.config import DataArguments, H4ArgumentParser, ModelArguments
from simpo.console import UserError
from simpo.objectives import objective_names
from simpo.train.config import config_class

TOP = {entry.name for entry in ROOT.iterdir()} - {".venv", "outputs", "data"}
PROGRAMS = [
    "accelerate",
    "conda",
    "cp",
    "ip",
    "lm-eval",
    "make",
    "pip",
    "python",
    "sbatch",
    "scontrol",
    "vllm",
    "ray",
]
RECORD = """#!/bin/sh
[ "$(basename "$0")" = scontrol ] && echo node1
{ printf '%s\\037' "$PWD" "$(basename "$0")" "$@"; printf '\\036'; } >> "$CALLS"
"""
# what a cluster sets, and what a page says to fill in
VARIABLES = {
    "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NODEID": "0",
    "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "5", "OPENAI_API_KEY": "key",
}  # fmt: skip


class Parsed(Exception):
    """A program has read its command line."""


def commands(page: Path) -> str:
    return "".join(blocks(str(page.relative_to(ROOT))))


def test_every_block_is_run_or_said_to_be_parsed_only():
    entries = [*RUN, *PARSED_ONLY]
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for text in blocks(name):
            assert len([words for where, words in entries if where == name and words in text]) == 1, f"{name}: {text}"
    for page, words in entries:
        block(page, words)
    for place in PARSED_ONLY.values():
        assert all((ROOT / "tests" / file).is_file() for file in re.findall(r"test_\w+\.py", place)), place
    for (page, words), file in RUN.items():
        assert f'block("{page}", "{words}")' in (ROOT / "tests" / file).read_text(encoding="utf-8"), file
    assert {str(page.relative_to(ROOT)) for page in PAGES if "```python" in page.read_text("utf-8")} == PYTHON.keys()


@pytest.fixture(scope="module")
def calls_of(tmp_path_factory):
    """Run shell text where every program only notes how it was called: (folder, program, arguments) each."""
    folder = tmp_path_factory.mktemp("pages")
    programs, place = folder / "programs", folder / "checkout"
    programs.mkdir()
    place.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text(RECORD)
        (programs / name).chmod(0o755)
    (programs / "srun").write_text('#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n')
    (programs / "srun").chmod(0o755)
    for entry in ROOT.iterdir():
        if entry.name not in ("outputs", ".git"):
            (place / entry.name).symlink_to(entry)

    def run(text: str) -> list[tuple[Path, str, list[str]]]:
        record = folder / "calls"
        record.write_text("")
        # a shell script that is called by its path, or with bash, is a program as well
        text = re.sub(r"\b(?:bash )?((?:on_policy_data_gen|examples)/\S+\.sh)", r"python \1", text)
        env = os.environ | VARIABLES | {"CALLS": str(record), "PATH": f"{programs}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-euc", text], cwd=place, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        calls = [call.split("\037")[:-1] for call in record.read_text().split("\036")[:-1]]
        return [(Path(call[0]), call[1], call[2:]) for call in calls]

    return run


def read_command_line(script: Path, argv: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let a script's main read these arguments, and no more."""

    def stopping(read):
        def parse(*args, **kwargs):
            read(*args, **kwargs)
            raise Parsed

        return parse

    patch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
    patch.setattr(H4ArgumentParser, "parse", stopping(H4ArgumentParser.parse))
    patch.setattr(sys, "argv", [str(script), *argv])
    spec = importlib.util.spec_from_file_location(f"page_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(Parsed):
        module.main.__wrapped__()


def check(place: Path, program: str, words: list[str], patch: pytest.MonkeyPatch) -> int:
    """Check one call; the number of programs of this project in it."""
    for word in words:
        if re.fullmatch(r"[\w./=-]+", word) and (path := word.rpartition("=")[2]).partition("/")[0] in TOP:
            assert (ROOT / path).exists(), f"{path} does not exist"
    if program == "make":
        for word in words:
            assert re.search(rf"^{word}:", (ROOT / "Makefile").read_text(), re.M), f"the Makefile makes no {word}"
        return 1
    if program == "accelerate":
        launch = launch_command_parser().parse_args(words[1:])
        script, argv = launch.training_script, launch.training_script_args
    elif program == "python" and words[0] != "-m":
        script, argv = words[0], words[1:]
    else:
        return 0
    script = place / script
    assert script.is_file(), f"{script} does not exist"
    if script.suffix == ".py":
        with patch.context() as inner:
            inner.chdir(place)
            read_command_line(script, argv, inner)
    return 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_read(page, calls_of, monkeypatch):
    found = sum(check(*call, monkeypatch) for call in calls_of(commands(page)))
    assert page != ROOT / "README.md" or found >= 10


@pytest.mark.parametrize(
    "command",
    [
        "python on_policy_data_gen/decode.py --sed 42",
        "python scripts/run_simpo.py training_configs/llama-3-8b-instruct-simpo.yaml --gama=1",
        "python scripts/run_simpo.py training_configs/llama-3-8b-instruct-sipo.yaml",
        "accelerate launch --config_file accelerate_configs/zero.yaml scripts/run_simpo.py",
        "python scripts/marge.py a b",
        "make tests",
    ],
)
def test_a_wrong_command_is_found(command, calls_of, monkeypatch):
    with pytest.raises((AssertionError, UserError), match=r"sed|gama|sipo|zero|marge|Makefile"):
        for call in calls_of(command):
            check(*call, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


def test_options_in_the_text_exist():
    """Each `--option` in a page's text is one of accelerate's launcher or of a program of this project."""
    sources = [file.read_text(encoding="utf-8") for file in ROOT.glob("[!.]*/**/*.py") if "outputs" not in file.parts]
    fields = {name for kind in (ModelArguments, DataArguments) for name in kind.__dataclass_fields__}
    fields |= {name for objective in objective_names() for name in config_class(objective).__dataclass_fields__}
    launcher = {word.lstrip("-") for action in launch_command_parser()._actions for word in action.option_strings}
    text = "\n".join(sources)
    unknown, foreign = [], {"model_configs", "model_outputs"}  # alpaca_eval's
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for option in set(re.findall(r"`[^`\n]*?--([a-z]\w+)", prose)):
            known = option in fields | launcher | foreign or re.search(rf"\b{option}: |[\"']--{option}[\"']", text)
            unknown += [] if known else [f"{page.relative_to(ROOT)}: --{option}"]
    assert not unknown

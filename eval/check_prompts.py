"""Show what a model reads in training, in data generation and in each benchmark, and say where these disagree.

    python eval/check_prompts.py outputs/llama-3-8b-instruct-simpo training_configs/llama-3-8b-instruct-simpo.yaml
    python eval/check_prompts.py princeton-nlp/Llama-3-Instruct-8B-SimPO \
        eval/alpacaeval2/configs/Llama-3-Instruct-8B-SimPO.yaml

MODEL is a hub name or a folder with a tokenizer; weights are not read. CONFIG is a training YAML, or a benchmark's
configuration (AlpacaEval's YAML, Arena-Hard's folder, MT-Bench's YAML). Without a training YAML the training example is
made as run_simpo.py would for MODEL. Exits with status 1 when a prompt is not what the model was trained to answer:
another template, another system message (training's empty one, where the other has none), a missing assistant header,
a block of thoughts that is open in one only, BOS twice or not at all.
"""

import json
import sys
from copy import copy
from typing import Any, NamedTuple

from benchmarks import find, names
from decoding import Settings
from prompting import Prompter, load_tokenizer
from simpo.chat.template import resolve_chat_template
from simpo.chat.thinking import TAGS, opens_thinking
from simpo.chat.variables import fix_variables
from simpo.config import H4ArgumentParser, read_yaml
from simpo.console import ArgumentParser, UserError, command, say

QUESTION, ANSWER, SECOND = "What is the capital of France?", "Paris, as you know.", "And of Italy?"
USER = [{"role": "user", "content": QUESTION}]
TWO_TURNS = [*USER, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": SECOND}]


class Prompt(NamedTuple):
    """One rendered prompt. `ids`: what the model reads; `problem`: why it could not be rendered, if so."""

    label: str
    ids: list[int]
    problem: str | None = None


@command
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("model", help="hub name, or folder with a tokenizer")
    parser.add_argument("config", nargs="?", help="training YAML, or a benchmark's configuration")
    args = parser.parse_args()
    benchmark, settings, training = read_config(args.config)

    tokenizer, _ = load_tokenizer(args.model, None)
    train, asked = training_example(args.model, training)
    decode = render("decode prompt", Prompter(tokenizer), USER)
    prompts, problems = [decode], []
    for name in names():
        prompts += benchmark_prompts(name, tokenizer, settings if name == benchmark else Settings())
    for prompt in (train, *prompts):
        show(tokenizer, prompt)
        problems += bos_problems(tokenizer, prompt)
    if tokenizer(tokenizer.decode(decode.ids))["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
        say("note: fed as text, the decode prompt would get a second BOS from the tokenizer; token ids do not")
    if not train.problem:
        trained, problem = trained_prompt(plain_text(tokenizer, train), plain_text(tokenizer, asked))
        problems += [problem] if problem else []
        for prompt in prompts:
            if "turn 2" not in prompt.label and prompt.ids:
                problems += differences(prompt.label, plain_text(tokenizer, prompt), trained)
    for problem in problems:
        say(f"DISAGREE: {problem}")
    if problems:
        sys.exit(1)
    say("all prompts agree")


def read_config(path: str | None) -> tuple[str | None, Settings, dict[str, Any]]:
    """The benchmark that CONFIG is of with its settings, or the training settings that it holds.

    Raises:
        UserError: no such file, or an invalid one.
    """
    if path is None:
        return None, Settings(), {}
    for name in names():
        if find(name).has_config(path):
            return name, find(name).read_settings(path), {}
    return None, Settings(), read_yaml(path)


def training_example(model: str, training: dict[str, Any]) -> tuple[Prompt, Prompt]:
    """Prompt and chosen response of one pair as the trainer reads them, with the training code itself; and what asks
    for an answer with training's template and system message."""
    from simpo.chat.format import format_pair, with_context
    from simpo.chat.template import render as render_text
    from simpo.config import DataArguments, ModelArguments
    from simpo.data.tokenize import PairTokenizer
    from simpo.train.model import get_tokenizer

    keys = {"model_name_or_path", "chat_template", "chat_template_kwargs", "auto_insert_empty_system_msg"}
    given = {key: value for key, value in training.items() if key in keys and value is not None}
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in given.items()}
    model_args, data_args = H4ArgumentParser((ModelArguments, DataArguments)).parse(
        [f"--{key}={text}" for key, text in texts.items()]
    )
    # the trained model's name decides the template; the model itself is not read
    trained, model_args.model_name_or_path = model_args.model_name_or_path or model, None
    model_args.tokenizer_name_or_path = model
    tokenizer = get_tokenizer(model_args, data_args, auto_set_chat_template=False)
    template = resolve_chat_template(tokenizer, data_args.chat_template, trained, mistral_override=True)
    fix_variables(tokenizer, template.jinja, data_args.chat_template_kwargs)
    pair = {name: [*USER, {"role": "assistant", "content": ANSWER}] for name in ("chosen", "rejected")}
    try:
        split = format_pair(pair, tokenizer, data_args.auto_insert_empty_system_msg)
    except UserError as error:
        return Prompt("training example", [], str(error)), Prompt("", [])
    prompt, tools = with_context(USER, {}, tokenizer, data_args.auto_insert_empty_system_msg)
    asked = tokenizer(render_text(tokenizer, prompt, True, tools), add_special_tokens=False)["input_ids"]
    columns = ("prompt", "chosen", "rejected")
    rows = {name: [text] for name, text in zip(columns, [split.prompt, *split.responses], strict=True)}
    return Prompt("training example", PairTokenizer(tokenizer, 2048, 1024)(rows)["chosen_input_ids"][0]), Prompt(
        "", asked
    )


def benchmark_prompts(benchmark: str, tokenizer: Any, settings: Settings) -> list[Prompt]:
    """A benchmark's prompts as generate_answers.py makes them; those of a configuration also as the official tool
    feeds them: AlpacaEval's as text, to which the tokenizer adds what it adds, Arena-Hard's as the template writes
    them (`vllm serve` adds nothing)."""
    if settings.chat_template is not None:
        tokenizer = copy(tokenizer)
        fix_variables(tokenizer, resolve_chat_template(tokenizer, settings.chat_template).jinja, None)
    prompter = Prompter(tokenizer, settings.prompt_template)
    prompts = [render(f"{benchmark} prompt", prompter, USER)]
    if settings.prompt_template is not None:
        text = settings.prompt_template.replace("{instruction}", QUESTION)
        prompts.append(Prompt(f"{benchmark} prompt as the official tool feeds it", tokenizer(text)["input_ids"]))
    if find(benchmark).asks_server and settings.name is not None and not prompts[0].problem:
        prompts.append(Prompt(f"{benchmark} prompt as vllm serve feeds it", prompter.raw_ids(USER)))
    if find(benchmark).turns == 2:
        prompts.append(render(f"{benchmark} turn 2", prompter, TWO_TURNS))
    return prompts


def render(label: str, prompter: Prompter, messages: list[dict[str, str]]) -> Prompt:
    try:
        raw, ids = prompter.raw_ids(messages), prompter.token_ids(messages)
    except UserError as error:
        return Prompt(label, [], str(error))
    bos = prompter.tokenizer.bos_token_id
    twice = bos is not None and (raw[:2] == [bos, bos] if begins_turns(prompter.tokenizer) else raw.count(bos) > 1)
    return Prompt(label, ids, "the template itself writes BOS more than once" if twice else None)


def show(tokenizer: Any, prompt: Prompt) -> None:
    counts = {"BOS": tokenizer.bos_token_id, "EOS": tokenizer.eos_token_id}
    found = ", ".join(f"{prompt.ids.count(token)} {name}" for name, token in counts.items() if token is not None)
    say(f"{prompt.label}: {len(prompt.ids)} tokens, {found}")
    say(f"    {tokenizer.decode(prompt.ids)!r}")


def begins_turns(tokenizer: Any) -> bool:
    """Whether BOS is also what begins every turn (ChatML): then it counts at the start only."""
    try:
        ids = Prompter(tokenizer).raw_ids(TWO_TURNS)
    except UserError:
        return False
    return ids.count(tokenizer.bos_token_id) > len(TWO_TURNS)  # every message and the answer that is asked for


def bos_problems(tokenizer: Any, prompt: Prompt) -> list[str]:
    if prompt.problem:
        return [f"{prompt.label}: {prompt.problem}"]
    if tokenizer.bos_token_id is None:
        return []
    if prompt.ids[:1] != [tokenizer.bos_token_id]:
        return [f"{prompt.label}: does not begin with BOS; write {tokenizer.bos_token} into the template"]
    counted = prompt.ids[:2] if begins_turns(tokenizer) else prompt.ids
    count = counted.count(tokenizer.bos_token_id)
    if count > 1:
        return [f"{prompt.label}: BOS comes {count} times; take it out of the template, or the tokenizer's own away"]
    return []


def plain_text(tokenizer: Any, prompt: Prompt) -> str:
    """The prompt's text without the BOS at its start, which is judged apart."""
    start = next((i for i, token in enumerate(prompt.ids) if token != tokenizer.bos_token_id), 0)
    return tokenizer.decode(prompt.ids[start:]).lstrip(" ")


def trained_prompt(text: str, asked: str) -> tuple[str, str | None]:
    """What the model was trained to answer: the training example up to the answer, less thoughts that it writes itself.

    Args:
        text: the training example.
        asked: what training's template asks with; the example may write more (a header, thoughts) before its answer.

    Returns:
        The text; and what is wrong with the training example itself, if anything.
    """
    lead, _, rest = text.partition(QUESTION)
    between, end = rest.partition(ANSWER)[0], asked.partition(QUESTION)[2]
    if not between.startswith(end.rstrip()):
        problem = (
            f"training example: the answer follows {between!r}, but is asked for with {end!r}: another block of "
            "thoughts, or another header (chat_template_kwargs may change that)"
        )
        return lead + QUESTION + end, problem
    own = between[len(end.rstrip()) :]
    for tag in (tag for tags in TAGS for tag in tags):
        own = own.replace(tag, "")
    return lead + QUESTION + (between if own.strip() else end), None


def differences(label: str, text: str, trained: str) -> list[str]:
    """How a prompt's text differs from what the model was trained to answer."""
    lead, _, end = text.partition(QUESTION)
    trained_lead, _, trained_end = trained.partition(QUESTION)
    if lead != trained_lead:
        if lead.endswith(trained_lead) or trained_lead.endswith(lead):
            what = "another system message than training (see auto_insert_empty_system_msg)"
        else:
            what = "another template than training"
        return [f"{label}: {what}: {lead!r} against {trained_lead!r} before the question"]
    if end.rstrip() == trained_end.rstrip():
        return []
    if opens_thinking(end) != opens_thinking(trained_end) or any(
        (tag in end) != (tag in trained_end) for tags in TAGS for tag in tags
    ):
        return [f"{label}: another block of thoughts than training: {end!r} against {trained_end!r} after the question"]
    if trained_end.startswith(end.rstrip()):
        missing = trained_end.removeprefix(end.rstrip()).strip()
        return [f"{label}: the assistant header {missing!r}, which the model was trained with, is missing"]
    return [f"{label}: another template than training: {end!r} against {trained_end!r} after the question"]


if __name__ == "__main__":
    main()

"""Show what a model reads in training, in data generation and in each benchmark, and say where these disagree.

    python eval/check_prompts.py outputs/llama-3-8b-instruct-simpo training_configs/llama-3-8b-instruct-simpo.yaml
    python eval/check_prompts.py princeton-nlp/Llama-3-Instruct-8B-SimPO \
        eval/alpacaeval2/configs/Llama-3-Instruct-8B-SimPO.yaml

MODEL is a hub name or a folder with a tokenizer; weights are not read. CONFIG is a training YAML, or a benchmark's
configuration (AlpacaEval's YAML, Arena-Hard's folder, MT-Bench's YAML). Without a training YAML the training example is
made as run_simpo.py would for MODEL. Exits with status 1 when prompts disagree: BOS twice or not at all, another
template, a missing assistant header.
"""

import sys
from copy import copy
from typing import Any, NamedTuple

from benchmarks import find, names
from decoding import Settings
from prompting import Prompter, load_tokenizer
from simpo.chat.template import resolve_chat_template
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
    train = training_example(args.model, training)
    decode = render("decode prompt", Prompter(tokenizer), USER)
    prompts, problems = [train, decode], []
    for name in names():
        prompts += benchmark_prompts(name, tokenizer, settings if name == benchmark else Settings())
    for prompt in prompts:
        show(tokenizer, prompt)
        problems += bos_problems(tokenizer, prompt)
    system = render("", Prompter(tokenizer), [{"role": "system", "content": ""}, *USER])
    problems += training_problems(tokenizer, train, decode, system)
    if tokenizer(tokenizer.decode(decode.ids))["input_ids"].count(tokenizer.bos_token_id) > 1:
        say("note: fed as text, the decode prompt would get a second BOS from the tokenizer; token ids do not")
    for prompt in prompts[2:]:
        if "turn 2" not in prompt.label and not prompt.problem and not decode.problem:
            problems += template_problems(tokenizer, prompt, decode)
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


def training_example(model: str, training: dict[str, Any]) -> Prompt:
    """Prompt and chosen response of one pair as the trainer reads them, with the training code itself."""
    from simpo.chat.format import apply_chat_template
    from simpo.config import DataArguments, ModelArguments
    from simpo.data.tokenize import PairTokenizer
    from simpo.train.model import get_tokenizer

    names = {"model_name_or_path", "chat_template", "auto_insert_empty_system_msg", "header_in_prompt"}
    given = [f"--{key}={value}" for key, value in training.items() if key in names and value is not None]
    model_args, data_args = H4ArgumentParser((ModelArguments, DataArguments)).parse(given)
    # the trained model's name decides the template; the model itself is not read
    trained, model_args.model_name_or_path = model_args.model_name_or_path or model, None
    model_args.tokenizer_name_or_path = model
    tokenizer = get_tokenizer(model_args, data_args, auto_set_chat_template=False)
    template = resolve_chat_template(tokenizer, data_args.chat_template, trained, mistral_override=True)
    fix_variables(tokenizer, template.jinja, data_args.chat_template_kwargs)
    pair = {name: [*USER, {"role": "assistant", "content": ANSWER}] for name in ("chosen", "rejected")}
    try:
        text = apply_chat_template(
            pair, tokenizer, "simpo", data_args.auto_insert_empty_system_msg, data_args.header_in_prompt
        )
    except UserError as error:
        return Prompt("training example", [], f"the chat template refuses it: {error}")
    rows = {name: [text[f"text_{name}"]] for name in ("prompt", "chosen", "rejected")}
    return Prompt("training example", PairTokenizer(tokenizer, 2048, 1024)(rows)["chosen_input_ids"][0])


def benchmark_prompts(benchmark: str, tokenizer: Any, settings: Settings) -> list[Prompt]:
    """A benchmark's prompts as generate_answers.py makes them; those of a configuration also as the official tool
    feeds them: AlpacaEval's as text, to which the tokenizer adds what it adds, Arena-Hard's as the template writes
    them (`vllm serve` adds nothing)."""
    if settings.chat_template is not None:
        tokenizer = copy(tokenizer)
        tokenizer.chat_template = resolve_chat_template(tokenizer, settings.chat_template).jinja
    prompter = Prompter(tokenizer, settings.prompt_template)
    prompts = [render(f"{benchmark} prompt", prompter, USER)]
    if settings.prompt_template is not None:
        text = settings.prompt_template.replace("{instruction}", QUESTION)
        prompts.append(Prompt(f"{benchmark} prompt as the official tool feeds it", tokenizer(text)["input_ids"]))
    if benchmark == "arenahard" and settings.name is not None and not prompts[0].problem:
        prompts.append(Prompt("arenahard prompt as vllm serve feeds it", prompter.raw_ids(USER)))
    if benchmark == "mt-bench":
        prompts.append(render("mt-bench turn 2", prompter, TWO_TURNS))
    return prompts


def render(label: str, prompter: Prompter, messages: list[dict[str, str]]) -> Prompt:
    try:
        raw, ids = prompter.raw_ids(messages), prompter.token_ids(messages)
    except UserError as error:
        return Prompt(label, [], str(error))
    twice = prompter.tokenizer.bos_token_id is not None and raw.count(prompter.tokenizer.bos_token_id) > 1
    return Prompt(label, ids, "the template itself writes BOS more than once" if twice else None)


def show(tokenizer: Any, prompt: Prompt) -> None:
    counts = {"BOS": tokenizer.bos_token_id, "EOS": tokenizer.eos_token_id}
    found = ", ".join(f"{prompt.ids.count(token)} {name}" for name, token in counts.items() if token is not None)
    say(f"{prompt.label}: {len(prompt.ids)} tokens, {found}")
    say(f"    {tokenizer.decode(prompt.ids)!r}")


def bos_problems(tokenizer: Any, prompt: Prompt) -> list[str]:
    if prompt.problem:
        return [f"{prompt.label}: {prompt.problem}"]
    if tokenizer.bos_token_id is None:
        return []
    count = prompt.ids.count(tokenizer.bos_token_id)
    if count > 1:
        return [f"{prompt.label}: BOS comes {count} times; take it out of the template, or the tokenizer's own away"]
    if count == 0 or prompt.ids[0] != tokenizer.bos_token_id:
        return [f"{prompt.label}: does not begin with BOS; write {tokenizer.bos_token} into the template"]
    return []


def plain_text(tokenizer: Any, prompt: Prompt) -> str:
    """The prompt's text without BOS, which is counted apart."""
    ids = [token for token in prompt.ids if token != tokenizer.bos_token_id]
    return tokenizer.decode(ids).lstrip(" ")


def training_problems(tokenizer: Any, train: Prompt, decode: Prompt, system: Prompt) -> list[str]:
    """The training example must begin with the decode prompt, and go on with the answer: what stands between the two
    in training is a header that the decode prompt lacks. An empty system message in training is no disagreement (the
    published models were trained with one); `system` is the decode prompt with one."""
    if train.problem or decode.problem:
        return []
    text, prompt = plain_text(tokenizer, train), plain_text(tokenizer, decode)
    start = text.find(QUESTION)
    lead, own_lead = text[:start], prompt[: prompt.find(QUESTION)]
    if lead not in (own_lead, plain_text(tokenizer, system).partition(QUESTION)[0]):
        return [f"training example: another template than the decode prompt: {lead!r} against {own_lead!r}"]
    if lead != own_lead:
        say(f"note: training puts an empty system message in front: {lead!r}")
    between, own_end = text[start:].partition(ANSWER)[0], prompt[prompt.find(QUESTION) :]
    if between.strip() == own_end.strip():
        return []
    if between.startswith(own_end.rstrip()):
        missing = between.removeprefix(own_end.rstrip())
        return [
            f"decode prompt: the assistant header {missing.strip()!r}, which the model was trained with, is missing"
        ]
    return [f"training example: another template than the decode prompt: {between!r} against {own_end!r}"]


def template_problems(tokenizer: Any, prompt: Prompt, decode: Prompt) -> list[str]:
    """A benchmark's prompt must be the decode prompt, BOS aside."""
    own, other = plain_text(tokenizer, prompt), plain_text(tokenizer, decode)
    if own == other:
        return []
    if other.startswith(own):
        return [f"{prompt.label}: the assistant header {other.removeprefix(own)!r} is missing"]
    return [f"{prompt.label}: another template than the decode prompt: {own!r} against {other!r}"]


if __name__ == "__main__":
    main()

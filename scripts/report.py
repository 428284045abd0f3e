"""Show what runs did on one HTML page that needs no network: one run, or several side by side.

    python scripts/report.py outputs/quickstart --output report.html
    python scripts/report.py outputs/simpo-beta2 outputs/simpo-beta10 --output report.html

RUN_DIR is the output_dir of run_simpo.py, run_wpo.py or run_sft.py, or a folder that holds several stages. All of these
files are optional; what is absent is left out of the page.

In RUN_DIR and the folders at most two levels below it (models/sft, round_1/train), but for checkpoint-*:
    run_config.yaml         a training's settings
    trainer_state.json      its curves; of an unfinished training, the newest checkpoint's
    all_results.json        its final evaluation
    data_report.json        {split: {rows, prompt_cut, response_cut, dropped_identical, dropped_empty,
                            dropped_malformed}}
    generations.jsonl       answers while training ({step, prompt, generation}): the first step's and the last's
    all_outputs_rm.json, all_outputs_bin.json       scored responses and pairs (annotate's; also *_rm_test, *_bin_test)
    output_{seed}.json, skipped_prompts.json, all_outputs.json      in the same folder: what was sampled and dropped

In RUN_DIR itself:
    answers_before.json, answers_after.json         [{prompt, answer}]: greedy answers of the first and the last model;
                                                    optional: correct (true or false), expected (a text), and what
                                                    correct answers are counted by: kind, family (texts), seen (whether
                                                    the kind was trained on)
    summary.json            {accuracy_before, accuracy_after (0 to 1), n, mean_length_before, mean_length_after (in
                            tokens), seconds}
    rounds.json, held_out/{0,1,...}/output_0.json, held_out/all_outputs_rm.json     (run_rounds.sh's) the answers of
                            every round's model to the held-out prompts, and their scores
    answers_round_{1,2,...}.json                    as answers_before.json, of the rounds before the last
    scores.json, scores/*.json                      what eval/score.py writes with --output
"""

import argparse
from pathlib import Path

from reporting.page import render
from reporting.plots import COLOURS
from reporting.read import names_of, read_run
from simpo.console import UserError, command, say


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--output", type=Path, required=True, help="HTML file to write")
    args = parser.parse_args()
    if len(args.run_dir) > len(COLOURS):
        raise UserError(f"{len(args.run_dir)} runs: a page shows {len(COLOURS)} at most, one colour each")
    runs = [read_run(folder, name) for folder, name in zip(args.run_dir, names_of(args.run_dir), strict=True)]
    write(args.output, render(runs))
    say(f"wrote {args.output}")


def write(path: Path, text: str) -> None:
    """Write the whole file or nothing: beside its place, then renamed.

    Raises:
        UserError: it cannot be written there.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"output: {path} cannot be written: {error}") from error


if __name__ == "__main__":
    main()

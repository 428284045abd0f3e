"""Put the answers of all models so far to the held-out prompts beside each other, for annotate to score.

    python held_out.py OUT/held_out 2

Reads FOLDER/0/output_0.json (the first model's), FOLDER/1/output_0.json (that of round 1), ... up to the number, and
writes FOLDER/all_outputs.json: {prompt, all_generated_responses, in the models' order, and the prompt's columns}.
"""

from pathlib import Path

from conversations import to_json
from decoded import by_prompt, output_rows
from post_process import columns_of
from simpo.console import ArgumentParser, UserError, command, warn
from simpo.files import write_json


@command
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="OUT/held_out")
    parser.add_argument("last", type=int, help="number of the last round")
    args = parser.parse_args()
    answers = [by_prompt(output_rows(args.folder / str(number), 0)) for number in range(args.last + 1)]
    common = [prompt for prompt in answers[0] if all(prompt in found for found in answers)]
    if not common:
        raise UserError(f"{args.folder}: no held-out prompt is answered by every model")
    if lost := max(map(len, answers)) - len(common):
        warn(f"{args.folder}: {lost} held-out prompts are left out: a model could not answer them")
    rows = []
    for prompt in common:
        own = [found[prompt] for found in answers]
        texts = [answer["generated_text"] for answer in own]
        rows.append({"prompt": to_json(prompt), "all_generated_responses": texts} | columns_of(own))
    write_json(args.folder / "all_outputs.json", rows)


if __name__ == "__main__":
    main()

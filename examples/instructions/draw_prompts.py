"""Draw the prompts of a run from its seed.

    python draw_prompts.py --output outputs/instructions/data --seed 0

Writes, with the fields of `questions.Task`:
    prompts.jsonl     288 to sample answers to: families and kinds that are trained on
    held_out.jsonl    150 of the same kinds and 100 of the kinds that are not, on the held-out families
"""

import argparse
import json
import random
from pathlib import Path

from questions import FAMILIES, HELD_OUT, KINDS, Task, draw, rows

from simpo.console import command


def write(path: Path, tasks: list[Task]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(tasks)))


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the numbers above")
    args = parser.parse_args()
    trained = [name for name, kind in KINDS.items() if kind.trained]
    others = [name for name, kind in KINDS.items() if not kind.trained]
    seen, unseen, train = (max(6, round(args.scale * count)) for count in (150, 100, 288))
    families = [name for name in FAMILIES if name not in HELD_OUT]
    write(args.output / "prompts.jsonl", draw(families, trained, train, random.Random(f"train {args.seed}")))
    held_out = [
        *draw(list(HELD_OUT), trained, seen, random.Random(f"seen {args.seed}")),
        *draw(list(HELD_OUT), others, unseen, random.Random(f"unseen {args.seed}")),
    ]
    write(args.output / "held_out.jsonl", held_out)


if __name__ == "__main__":
    main()

"""The chosen answers of pairs as conversations for supervised fine-tuning.

python chosen.py annotated/all_outputs_bin.json sft/train.jsonl
"""

import argparse
import json
from pathlib import Path

from simpo.console import command


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"messages": pair["chosen"]} for pair in json.loads(args.pairs.read_text())]
    args.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()

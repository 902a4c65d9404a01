"""Pairs of answers with a known rule: what `notebooks/preferences.ipynb` learns to rank.

    python data/make_preferences.py --out data/preferences.jsonl

Both answers say the same about a field report. The chosen one begins with the state of the road, because a driver reads
no further; the rejected one ends with it. Their lengths are equal, so that length gives nothing away.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from make_relief import triage


def rows(count: int, seed: int) -> Iterator[dict[str, str]]:
    """prompt, chosen, rejected"""
    for row in triage(count, seed):
        report, line = (turn["content"] for turn in row["messages"])
        desk, road, place = line.split(" | ")
        yield {
            "prompt": report,
            "chosen": " | ".join((road, desk, place)),
            "rejected": " | ".join((desk, place, road)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with options.out.open("w", encoding="utf-8") as file:
        for row in rows(options.rows, options.seed):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"wrote {options.rows} pairs to {options.out}")


if __name__ == "__main__":
    main()

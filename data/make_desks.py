"""Field reports and the desk that each is for: what `notebooks/classify_text.ipynb` sorts.

    python data/make_desks.py --out data/desks.csv

The reports are those of `make_relief.py`, drawn by another seed than the ones of `triage.jsonl`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from make_relief import triage


def rows(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """(message, category)"""
    for row in triage(count, seed):
        report, line = (turn["content"] for turn in row["messages"])
        yield report, line.split(" | ")[0].removeprefix("desk: ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with options.out.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("message", "category"), *rows(options.rows, options.seed)]
        )
    print(f"wrote {options.rows} rows to {options.out}")


if __name__ == "__main__":
    main()

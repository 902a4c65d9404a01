"""Field reports with one flaw of each kind planted among sound rows: what `notebooks/check_data.ipynb` looks at.

    python data/make_messy.py --seed 3 --out data/messy.jsonl

The same seed always gives the same file. Places, agencies, addresses and keys are invented.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from make_relief import CORE, DESKS, EXTRAS, TRIAGE_PLACES, _report, _slots

SIZES = {
    "water": 56,
    "transport": 32,
    "health": 22,
    "shelter": 6,
}  # far from balanced, and few of the last
LONG = 7  # reports in one: more than 256 tokens of the embedded model
UKRAINIAN = {
    "Міст через річку зруйновано. Вантажівки не можуть проїхати.": "transport",
    "Колодязь у селі забруднено. Сорок родин без води.": "water",
    "Клініка працює, але бракує ліків і бинтів.": "health",
}


def sound(rng: random.Random, sizes: dict[str, int]) -> Iterator[dict]:
    """Reports in random order, so many of each category."""
    left = [category for category, n in sizes.items() for _ in range(n)]
    rng.shuffle(left)
    for category in left:
        slots = _slots(rng, TRIAGE_PLACES)
        while DESKS[slots["domain"]] != category:
            slots = _slots(rng, TRIAGE_PLACES)
        facts = [*CORE, *rng.sample(EXTRAS, 2)]
        yield {
            "date": slots["date"],
            "place": slots["place"],
            "message": _report(rng, slots, facts, 3),
            "category": category,
            "note": rng.choice(["checked", "checked", "", None]),
            "form": "radio",
        }


def flawed(rng: random.Random, rows: list[dict]) -> Iterator[dict]:
    """Rows of each flaw that can be written as JSON. Only the repetitions resemble others."""
    again = iter(rng.sample(rows, 7))
    for change in (str, str, str.upper, lambda words: f"  {words.replace(' ', '  ')}"):
        row = next(again)
        yield row | {"message": change(row["message"])}
    for words in (" Please confirm.", " Over.", " Answer soon."):
        row = next(again)
        yield row | {"message": row["message"] + words}
    fresh = sound(rng, {"water": 20})
    for words in (
        " Write to ana.ruiz@relief.example.org for the list.",
        " Store code: password: blue-kettle-41",
        " The upload key is AKIAIOSFODNN7EXAMPLE, keep it.",
        " The clinic in Saint-RenÃ© is full.",
        " Signal lost aft\ufffd\ufffd noon.",
        " End of tape.\0\0",
        " Rice &amp; oil arrived.</p>",
    ):
        row = next(fresh)
        yield row | {"message": row["message"] + words}
    yield next(fresh) | {"category": "Water"}  # one class, spelled in two ways
    yield next(fresh) | {"category": ""}
    yield next(fresh) | {"message": None}
    yield {name: value for name, value in next(fresh).items() if name != "category"}
    yield next(fresh) | {"message": " ".join(next(fresh)["message"] for _ in range(LONG))}
    for words, category in UKRAINIAN.items():
        yield rows[0] | {"message": words, "category": category, "note": None}


def lines(seed: int) -> list[str]:
    rng = random.Random(seed)
    rows = list(sound(rng, SIZES))
    bad = list(flawed(rng, rows))
    for row in bad:
        rows.insert(rng.randrange(10, len(rows)), row)  # the first ten rows are sound
    out = [json.dumps({"id": i, **row}, ensure_ascii=False) for i, row in enumerate(rows, 1)]
    cut = rng.randrange(20, len(out))
    return [*out[:cut], out[cut][:90], *out[cut + 1 :]]  # a line that was cut off


def main() -> None:
    parser = argparse.ArgumentParser(description="write field reports with planted flaws")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.write_text("\n".join(lines(options.seed)) + "\n", encoding="utf-8")
    print(f"wrote {len(lines(options.seed))} lines to {options.out}")


if __name__ == "__main__":
    main()

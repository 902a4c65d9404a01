"""Which scripts the letters are of (Latin, Cyrillic, Han, …): a base that never saw one will not learn it here."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache
from typing import Any

from lorakit import data
from lorakit.checks import Finding, bars
from lorakit.example import Example

TITLE = "scripts"
SAMPLED = True


@cache
def script(letter: str) -> str:
    """The first word of the letter's Unicode name: LATIN SMALL LETTER A -> Latin."""
    word = unicodedata.name(letter, "OTHER").split()[0].split("-")[0].capitalize()
    return {"Cjk": "Han", "Hiragana": "Japanese", "Katakana": "Japanese", "Fullwidth": "Latin"}.get(word, word)


class Check:
    def __init__(self, task: Any, tokenizer: Any, max_length: int):
        self.letters: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()  # by their most frequent script
        self.odd: dict[str, list[str]] = {}

    def see(self, example: Example, set: str) -> None:
        here: Counter[str] = Counter()
        for letter, n in Counter(data.text(example)).items():
            if letter.isalpha():
                here[script(letter)] += n
        self.letters += here
        main = max(here, key=here.get) if here else "no letters"
        self.rows[main] += 1
        places = self.odd.setdefault(main, [])
        if len(places) < 10:
            places.append(example.where)

    def findings(self) -> list[Finding]:
        total = self.letters.total()
        shares = ", ".join(f"{n} {c / total:.1%}" for n, c in self.letters.most_common(5)) if total else "no letters"
        out = [Finding("note", f"letters: {shares}")]
        rare = [s for s, n in self.rows.items() if n < 0.05 * self.rows.total() and s != "no letters"]
        out += [Finding("warning", f"{self.rows[s]} rows are mostly {s}", self.odd[s]) for s in rare]
        if self.rows["no letters"]:
            out.append(Finding("note", f"{self.rows['no letters']} rows have no letters", self.odd["no letters"]))
        return out

    def facts(self) -> dict[str, Any]:
        return {"letters": dict(self.letters.most_common()), "rows": dict(self.rows.most_common())}

    def draw(self, axes: Any) -> bool:
        if len(self.rows) > 1:
            bars(axes, dict(self.rows), "scripts, by a row's most frequent")
        return len(self.rows) > 1

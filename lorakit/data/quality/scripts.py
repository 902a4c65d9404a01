"""Which scripts the letters are of (Latin, Cyrillic, Han, …): a base that never saw one will not learn it here."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache
from typing import Any

from lorakit.data import duplicates
from lorakit.data.example import Example
from lorakit.data.quality import BLUE, SHOWN, YELLOW, Finding, bars, some

TITLE = "scripts"
SAMPLED = True
RARE = 0.05  # share of the rows below which a script is odd
NONE = "no letters"
OTHERWISE = {
    "Cjk": "Han",
    "Ideographic": "Han",
    "Hiragana": "Japanese",
    "Katakana": "Japanese",
    "Halfwidth": "Japanese",
    "Fullwidth": "Latin",
    "Feminine": "Latin",
    "Masculine": "Latin",
    "Micro": "Greek",
}


@cache
def script(letter: str) -> str:
    """The first word of the letter's Unicode name: LATIN SMALL LETTER A -> Latin."""
    word = unicodedata.name(letter, "OTHER").split()[0].split("-")[0].capitalize()
    return OTHERWISE.get(word, word)


def share(n: int, total: int) -> str:
    return f"{n / total:.1%}" if n >= 0.001 * total else "< 0.1%"


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.letters: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()  # by their most frequent script
        self.odd: dict[str, list[str]] = {}

    def see(self, example: Example, set: str) -> None:
        here: Counter[str] = Counter()
        for letter, n in Counter(duplicates.text(example)).items():
            if letter.isalpha():
                here[script(letter)] += n
        self.letters += here
        main = here.most_common(1)[0][0] if here else NONE
        self.rows[main] += 1
        places = self.odd.setdefault(main, [])
        if len(places) < SHOWN:
            places.append(example.where)

    def _odd(self, name: str) -> bool:
        return name != NONE and self.rows[name] < RARE * self.rows.total()

    def findings(self) -> list[Finding]:
        total = self.letters.total()
        shares = ", ".join(f"{n} {share(c, total)}" for n, c in self.letters.most_common(5))
        mixed = len(self.letters) != 1  # one script alone is nothing to tell
        out = [Finding("note", f"letters: {shares or 'none'}")] if mixed else []
        for name, n in self.rows.items():
            if name == NONE:
                out.append(Finding("note", f"{some(n)} without a letter", self.odd[name], n))
            elif self._odd(name):
                out.append(
                    Finding(
                        "warning",
                        f"{some(n)} mostly in {name} letters, unlike the rest; so few teach "
                        "little: are they meant to be there?",
                        self.odd[name],
                        n,
                    )
                )
        return out

    def facts(self) -> dict[str, Any]:
        return {"letters": dict(self.letters.most_common()), "rows": dict(self.rows.most_common())}

    def draw(self, axes: Any) -> int:
        colors = {name: YELLOW if self._odd(name) else BLUE for name in self.rows}
        return bars(axes, self.rows, "main script", colors) if len(self.rows) > 1 else 0

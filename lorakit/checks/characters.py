"""Characters that tell of a wrong turn: replacement marks, text decoded twice, control and invisible characters."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from lorakit import data
from lorakit.checks import Finding, bars
from lorakit.example import Example

TITLE = "characters"
SAMPLED = False
SIGNS = {
    "replacement characters (�): letters were lost when the file was written": re.compile("\ufffd"),
    "decoded twice (Ã©, â€™): read again as UTF-8 where it was made": re.compile(
        r"Ã[\x80-\xbf©¨¤¶¼±³¡º]|â€[\x80-\xbf™œ\x9d“”˜]"),
    "NUL and other control characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
    "unusual line ends (U+0085, U+2028, U+2029)": re.compile("[\x85\u2028\u2029]"),
    "invisible characters (zero width, direction marks)": re.compile(
        "[\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"),
    "HTML entities or tags": re.compile(r"&(?:amp|lt|gt|quot|nbsp|#\d+);|</(?:p|div|span|a|li|td|b|i)>"),
}
PLAIN = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f&<]*", re.ASCII)


class Check:
    def __init__(self, task: Any, tokenizer: Any, max_length: int):
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}

    def see(self, example: Example, set: str) -> None:
        words = data.text(example)
        if words.isascii() and PLAIN.fullmatch(words):
            return
        for sign, pattern in SIGNS.items():
            if pattern.search(words):
                self.counts[sign] += 1
                places = self.places.setdefault(sign, [])
                if len(places) < 10:
                    places.append(example.where)

    def findings(self) -> list[Finding]:
        return [Finding("warning", f"{n:,} rows hold {sign}", self.places[sign]) for sign, n in self.counts.items()]

    def facts(self) -> dict[str, Any]:
        return dict(self.counts)

    def draw(self, axes: Any) -> bool:
        if self.counts:
            bars(axes, {k.split(" (")[0].split(":")[0]: n for k, n in self.counts.items()}, "odd characters")
        return bool(self.counts)

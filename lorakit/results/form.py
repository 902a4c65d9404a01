"""The form that answers were taught in: fixed text with slots, found in the training answers; a closed set is one slot.

Answers are cut into words, spaces and marks; what all have in common, in one order (the longest common subsequence), is
fixed; between are slots: one of a few values, a number, or text without the mark that follows. JSON objects with
the same keys in the same order are of this form too. A form is only believed when it fits every training answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

FEWEST = 20  # answers from which a form is believed
CHOICES = 50  # values of a slot at most; each comes twice on average at least
FIXED = 0.2  # share of the shortest answer's characters that is fixed, spaces left out
NUMBER = r"-?[0-9]+(?:[.,][0-9]+)*"
DIGITS = 18  # of a number at most, where none were seen
PIECES = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True)
class Slot:
    """What may stand at one place: one of `choices`, a number, or 1 to `longest` characters, none of them in `ends`.

    `longest` of a number: of each run of its digits, so that no answer goes on with digits forever.
    """

    kind: str  # choice, number, text
    choices: Sequence[str] = ()
    ends: str = ""
    longest: int = 0
    empty: bool = False  # whether it may be nothing

    def pattern(self) -> str:
        if self.kind == "choice":
            longest_first = sorted(self.choices, key=len, reverse=True)
            return "(?:" + "|".join(map(re.escape, longest_first)) + ")"
        if self.kind == "number":
            digits = f"[0-9]{{1,{self.longest or DIGITS}}}"
            return f"(?:-?{digits}(?:[.,]{digits}){{0,3}})"
        return f"[^{re.escape(self.ends)}\\n]{{{0 if self.empty else 1},{self.longest}}}"

    def rule(self) -> str:
        if self.kind == "choice":
            return " | ".join(json.dumps(c, ensure_ascii=False) for c in self.choices)
        if self.kind == "number":
            digits = f"[0-9]{{1,{self.longest or DIGITS}}}"
            return f'"-"? {digits} ([.,] {digits}){{0,3}}'
        escaped = re.sub(r"([\]\\^-])", r"\\\1", self.ends)
        return f"[^{escaped}\\n]{{{0 if self.empty else 1},{self.longest}}}"


@dataclass(frozen=True)
class Form:
    """Fixed texts and slots in turn."""

    parts: Sequence[str | Slot]

    def pattern(self) -> str:
        """As a regular expression."""
        return "".join(p.pattern() if isinstance(p, Slot) else re.escape(p) for p in self.parts)

    def fits(self, answer: str | None) -> bool:
        """Whether an answer has this form."""
        return answer is not None and re.fullmatch(self.pattern(), answer.strip()) is not None

    def begins(self, text: str) -> bool:
        """Whether an answer of this form may begin so."""
        import regex

        return regex.fullmatch(self.pattern(), text, partial=True) is not None

    def gbnf(self) -> str:
        """As a grammar of llama.cpp (https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md)."""
        names, rules = [], []
        for number, part in enumerate(self.parts):
            if isinstance(part, Slot):
                names.append(f"slot{number}")
                rules.append(f"slot{number} ::= {part.rule()}")
            else:
                names.append(json.dumps(part, ensure_ascii=False))
        return "\n".join([f"root ::= {' '.join(names)}", *rules]) + "\n"

    def __str__(self) -> str:
        """`desk: (12 values) | road: (open, closed) | place: (text)`"""
        return "".join(p if isinstance(p, str) else f"({_shown(p)})" for p in self.parts)

    def plain(self) -> list[Any]:
        """For JSON."""
        return [p if isinstance(p, str) else vars(p) for p in self.parts]

    @classmethod
    def of(cls, plain: Iterable[Any]) -> Form:
        """The inverse of `plain`."""
        return cls([p if isinstance(p, str) else Slot(**p) for p in plain])


def _shown(slot: Slot) -> str:
    if slot.kind != "choice":
        return slot.kind
    return ", ".join(slot.choices) if len(slot.choices) <= 4 else f"{len(slot.choices)} values"


def infer(answers: Sequence[str]) -> Form | None:
    """The form of these answers; None where there is none, or too few answers to tell (`FEWEST`)."""
    answers = [a.strip() for a in answers]
    if len(answers) < FEWEST or not all(answers):
        return None
    if closed := _choice(answers):
        return Form([closed])
    cut = [PIECES.findall(answer) for answer in answers]
    common = reduce(_in_common, sorted(set(map(tuple, cut)), key=len), cut[0])
    fixed = [piece for piece in common if not piece.isspace()]
    if not fixed:
        return None
    found = _fitted(answers, [re.escape(piece) for piece in _joined(answers, common)], common)
    if found is None or not all(map(found.fits, answers)):
        return None
    constant = sum(map(len, fixed))
    return found if constant >= FIXED * min(len("".join(a.split())) for a in answers) else None


def _in_common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The longest common subsequence of pieces."""
    if len(one) <= len(other) and _contains(other, one):
        return list(one)
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i in range(len(one) - 1, -1, -1):
        for j in range(len(other) - 1, -1, -1):
            longest = max(lengths[i + 1][j], lengths[i][j + 1])
            lengths[i][j] = lengths[i + 1][j + 1] + 1 if one[i] == other[j] else longest
    out, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            out.append(one[i])
            i, j = i + 1, j + 1
        elif lengths[i + 1][j] >= lengths[i][j + 1]:
            i += 1
        else:
            j += 1
    return out


def _contains(whole: Sequence[str], part: Sequence[str]) -> bool:
    rest = iter(whole)
    return all(piece in rest for piece in part)


def _joined(answers: Sequence[str], common: Sequence[str]) -> list[str]:
    """Neighbouring pieces as one text where they stand together in every answer."""
    texts: list[str] = []
    for piece in common:
        if texts and all(texts[-1] + piece in answer for answer in answers):
            texts[-1] += piece
        else:
            texts.append(piece)
    return texts


def _fitted(answers: Sequence[str], texts: Sequence[str], common: Sequence[str]) -> Form | None:
    """Fixed texts (as patterns) with the slots between them, from what stands there in the answers."""
    pattern = re.compile("(.*?)" + "(.*?)".join(f"({text})" for text in texts) + "(.*)", re.DOTALL)
    groups = [match.groups() for answer in answers if (match := pattern.fullmatch(answer))]
    if len(groups) < len(answers):
        return None
    parts: list[str | Slot] = []
    columns = list(zip(*groups, strict=True))
    for number, column in enumerate(columns):
        if number % 2:  # fixed
            parts.append(column[0])
        elif any(column):
            following = columns[number + 1][0] if number + 1 < len(columns) else ""
            parts.append(_slot(column, following))
    merged: list[str | Slot] = []
    for part in parts:
        if merged and isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return Form(merged)


def _choice(values: Sequence[str]) -> Slot | None:
    """One of a few values that come again and again."""
    different = sorted(set(values))
    if len(different) > CHOICES or 2 * len(different) > len(values):
        return None
    return Slot("choice", different)


def _slot(values: Sequence[str], following: str) -> Slot:
    if closed := _choice(values):
        return closed
    if all(re.fullmatch(NUMBER, value) for value in values):
        return Slot("number", longest=2 * max(map(len, values)))
    mark = following.strip()[:1]
    ends = mark if mark and not any(mark in value for value in values) else ""
    return Slot("text", (), ends, 2 * max(map(len, values)), not all(values))


def acceptor(
    form: Form, tokenizer: Any, stop_ids: Sequence[int]
) -> Callable[[Sequence[int]], bool]:
    """Whether generated ids may begin an answer of the form, or be one, where they end with a stop token.

    Bytes of a character that is not complete yet decode to U+FFFD: they pass where the form has room for one that is
    not ASCII.
    """
    special, broken = set(tokenizer.all_special_ids), "\ufffd"
    texts = [
        text for p in form.parts for text in (p.choices if isinstance(p, Slot) else (p,))
    ]  # text slots take any character, also this one:
    wide = {c for text in texts for c in text if not c.isascii()} | {"\u00e9"}

    def accepts(ids: Sequence[int]) -> bool:
        if ids[-1] in stop_ids:
            return form.fits(tokenizer.decode(list(ids[:-1]), skip_special_tokens=True))
        if ids[-1] in special or not tokenizer.decode([ids[-1]], skip_special_tokens=True):
            return (
                False  # as ids beyond the tokenizer's, which fill up a vocabulary, it says nothing
            )
        text = tokenizer.decode(list(ids), skip_special_tokens=True).lstrip()
        whole = text.rstrip(broken)
        if broken in whole or len(text) > len(whole) + 3:  # a character has 4 bytes at most
            return False
        if text != whole:
            return any(form.begins(whole + c) for c in wide)
        return form.begins(text) if text else len(ids) == 1

    return accepts

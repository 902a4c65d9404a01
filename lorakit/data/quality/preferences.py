"""Pairs of answers: whether length gives the chosen one away, and pairs that contradict each other."""

from __future__ import annotations

from typing import Any

from lorakit.data.example import Example
from lorakit.data.quality import BLUE, GREEN, Finding, first, some

TITLE = "chosen and rejected answers"
SAMPLED = False
BIASED, FEW = (
    0.7,
    20,
)  # share of pairs from which length is worth a warning; pairs that show nothing


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.longer = self.shorter = 0  # pairs whose chosen answer is the longer, the shorter one
        self.seen: dict[tuple[str, str, str], str] = {}  # (prompt, chosen, rejected) -> where
        self.contradicting: list[str] = []

    def see(self, example: Example, set: str) -> None:
        pair = example.fields.get("pair")
        if pair is None:
            return
        *prompt, answer = example.fields["messages"]
        chosen, rejected = answer["content"].strip(), pair["rejected"]["content"].strip()
        self.longer += len(chosen) > len(rejected)
        self.shorter += len(chosen) < len(rejected)
        asked = "\n".join(turn["content"] for turn in prompt)
        if other := self.seen.get((asked, rejected, chosen)):
            self.contradicting.append(f"{example.where}: prefers what {other} rejects")
        self.seen.setdefault((asked, chosen, rejected), example.where)

    def findings(self) -> list[Finding]:
        out, pairs = [], self.longer + self.shorter
        if self.contradicting:
            count = len(self.contradicting)
            words = f"{some(count, 'pair')} with the same two answers the other way round"
            out.append(Finding("warning", words, first(self.contradicting), count))
        if pairs >= FEW:
            share = self.longer / pairs
            kind = "longer" if share >= 0.5 else "shorter"
            biased = max(share, 1 - share) >= BIASED
            words = f"the chosen answer is the {kind} one in {max(share, 1 - share):.0%} of {some(pairs, 'pair')}"
            if biased:
                words += f": a model may learn to answer {kind} and nothing else; add pairs that differ otherwise"
            out.append(Finding("warning" if biased else "note", words))
        return out

    def facts(self) -> dict[str, Any]:
        return {
            "chosen_longer": self.longer,
            "chosen_shorter": self.shorter,
            "contradicting": len(self.contradicting),
        }

    def draw(self, axes: Any) -> int:
        if not self.longer + self.shorter:
            return 0
        axes.barh(["shorter", "longer"], [self.shorter, self.longer], color=[GREEN, BLUE])
        axes.set_title("the chosen answer is the …", loc="left")
        return 2

"""Balance of the labels, or of answers that are few and short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

from lorakit.data.duplicates import normal, prompt_key
from lorakit.data.example import Example
from lorakit.data.quality import BLUE, SHOWN, YELLOW, Finding, bars, some
from lorakit.data.splitting import CLASS_LENGTH, CLASSES

TITLE = "classes"
SAMPLED = False
FEW, MANY = 10, 1000  # rows of a class that are too few to score it; labels that are kept count of
ASKED = 200_000  # texts whose labels are compared
NAMED = 8  # small classes named in a finding


def _asked(example: Example) -> Hashable:
    """What rows of equal questions share, pictures and sounds among them; nothing where nothing is asked."""
    media = tuple(medium["sha256"] for medium in example.fields.get("media", ()))
    return prompt_key(example) or (media and (example.fields.get("question"), media))


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.counts: Counter[str] | None = Counter()
        self.labelled = False
        self.asked: dict[Hashable, tuple[str, str]] = {}  # prompt -> the first label, its row
        self.contrary: list[str] = []  # rows with the text of another and another label

    def see(self, example: Example, set: str) -> None:
        if self.counts is None:
            return
        fields = example.fields
        self.labelled |= "label" in fields
        if "label" in fields and len(self.asked) < ASKED and (key := _asked(example)):
            first = self.asked.setdefault(key, (fields["label"], example.where))
            if normal(first[0]) != normal(fields["label"]):
                self.contrary.append(
                    f"{example.where}: {fields['label']!r}, {first[1]}: {first[0]!r}"
                )
        answer = (
            fields["label"]
            if "label" in fields
            else fields.get("messages", [{}])[-1].get("content")
        )
        if (
            not answer
            or len(self.counts) > (MANY if self.labelled else CLASSES)
            or (not self.labelled and len(answer) > CLASS_LENGTH)
        ):
            self.counts = None
        else:
            self.counts[answer] += 1

    @property
    def classes(self) -> Counter[str]:
        counts = self.counts or Counter()
        return counts if self.labelled or len(counts) <= counts.total() / 10 else Counter()

    def findings(self) -> list[Finding]:
        found = self.classes
        if not found:
            return []
        (most, n), rows = found.most_common(1)[0], found.total()
        if len(found) == 1:
            return [
                Finding(
                    "wrong" if self.labelled else "warning",
                    f"every row has the class {most!r}: there is nothing to tell apart",
                    count=rows,
                )
            ]
        out = [
            Finding(
                "note",
                f"{some(len(found), 'class')}; always saying {most!r} would be right in {n / rows:.1%} "
                "of the rows",
            )
        ]
        rare = dict(sorted(((k, c) for k, c in found.items() if c < FEW), key=lambda item: item[1]))
        if rare:
            words = ", ".join(f"{k!r} {c}" for k, c in [*rare.items()][:NAMED]) + ", …" * (
                len(rare) > NAMED
            )
            out.append(
                Finding(
                    "warning",
                    f"{some(len(rare), 'class')} of fewer than {FEW} rows ({words}): a score on "
                    "so few says little; add rows, or join classes",
                    count=sum(rare.values()),
                )
            )
        if self.contrary:
            n = len(self.contrary)
            words = f"{some(n)} with the text of another row and another label: a model cannot learn both"
            out.append(Finding("warning", words, self.contrary[:SHOWN], n))
        for names in self._alike().values():
            words = ", ".join(f"{name!r} {found[name]:,}" for name in names)
            words = f"{len(names)} classes differ in case or blanks alone ({words}); use one name"
            out.append(Finding("warning", words, count=sum(found[name] for name in names[1:])))
        return out

    def _alike(self) -> dict[str, list[str]]:
        """Spellings of a class that has several, the commonest first."""
        spellings: dict[str, list[str]] = {}
        for name, _ in self.classes.most_common():
            spellings.setdefault(normal(name), []).append(name)
        return {name: found for name, found in spellings.items() if len(found) > 1}

    def facts(self) -> dict[str, Any]:
        return dict(self.classes.most_common())

    def draw(self, axes: Any) -> int:
        found = self.classes
        return (
            bars(axes, found, TITLE, {k: YELLOW if c < FEW else BLUE for k, c in found.items()})
            if found
            else 0
        )

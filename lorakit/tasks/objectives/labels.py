"""Classification: the class of a row, by a new head on top of the base."""

from __future__ import annotations

from lorakit.tasks.protocol import Document, Row

HEAD = "labels"
NEEDS = "class_logits"
UNIT = "rows"
MEASURES = ("probabilities",)


def documents(row: Row) -> list[Document]:
    """The row; its class where it is known, as a number of the run's classes."""
    label = {"label": row["label"]} if "label" in row else {}
    return [Document(row["ids"], [False] * len(row["ids"]), values=label, unit=1)]

"""Next-token prediction: the marked tokens of a row, each from the tokens before it."""

from __future__ import annotations

from lorakit.tasks.protocol import Document, Row

HEAD = "tokens"
NEEDS = "target_loss"
UNIT = "target tokens"
METRICS = ("loss", "perplexity")


def documents(row: Row) -> list[Document]:
    targets = row["targets"] if "targets" in row else [False] * len(row["ids"])
    weights = row.get("weights")  # absent or empty where every target counts once
    return [
        Document(row["ids"], targets, weights if weights is not None and len(weights) else None)
    ]

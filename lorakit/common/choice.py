"""A value that was chosen automatically, with the reason that the plan, the notebook and the record show."""

from __future__ import annotations

from typing import Any, NamedTuple


class Choice(NamedTuple):
    """`Choice("fp16", "Tesla T4 has no bf16 hardware")`."""

    value: Any
    reason: str


Choices = dict[str, Choice]  # setting -> its value and why

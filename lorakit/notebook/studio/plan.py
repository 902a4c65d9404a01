"""What the next run needs, in a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.runs.phases import spoken


@dataclass(frozen=True)
class Plan:
    """What the next run needs; bytes and seconds."""

    memory: int
    room: int
    updates: int
    seconds: float
    warnings: list[str]

    def __str__(self) -> str:
        return (
            f"Fits this computer: needs {gigabytes(self.memory)} of {self.room / 1e9:.0f} GB memory. "
            f"{self.updates:,} training steps take about {spoken(self.seconds)}; before and after them the test "
            "questions are answered."
        )


def gigabytes(size: int) -> str:
    """`1.2`, or `less than 0.1`"""
    return f"{size / 1e9:.1f}" if size >= 1e8 else "less than 0.1"

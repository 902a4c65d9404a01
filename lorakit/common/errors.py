"""Errors that are the user's to cure: the command line shows their text and exits with 1, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LorakitError(Exception):
    """Something in the user's input or run is at fault.

    Args:
        message: what is wrong, with the value.
        setting: name of the setting of `Run` or option of the command at fault.
        value: the value that was given for it.
        where: file, row, layer or folder; `str` puts it before the message.
        cure: what to do about it; `str` puts it after the message.
    """

    def __init__(
        self,
        message: str,
        *,
        setting: str | None = None,
        value: object = None,
        where: object = None,
        cure: str | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.setting = setting
        self.value = value
        self.where = None if where is None else str(where)
        self.cure = cure

    def __str__(self) -> str:
        place = "" if self.where is None else f"{self.where}: "
        if self.cure is None:
            return place + self.message
        if self.message.endswith(("?", ".")):  # a sentence of its own
            return f"{place}{self.message} {self.cure[:1].upper()}{self.cure[1:]}"
        return f"{place}{self.message}; {self.cure}"

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook: the message alone, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


class BadRow(LorakitError):
    """One row of data cannot be used; the row is left out and listed, the run goes on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'rank'?"` for a near miss, else an empty string."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def first_line(error: Exception) -> str:
    """What an error of others says, in a line. That of torch.compile names first who raised it, and then says what."""
    lines = [line for line in str(error).strip().splitlines() if not line.endswith("raised:")]
    return lines[0] if lines else type(error).__name__

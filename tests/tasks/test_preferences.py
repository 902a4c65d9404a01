"""Rows of pairs: what is scored of each side, as literal lists."""

from __future__ import annotations

import pytest
from helpers.models import byte_tokenizer

from lorakit.common.errors import BadRow
from lorakit.data.example import Example
from lorakit.data.schemas import preference
from lorakit.tasks import chat, preferences
from lorakit.tasks.preview import PairPreview, Preview


def encoded(max_length=64, **fields):
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no", **fields}
    return preferences.encode(
        Example({**preference.convert(row), "columns": row}, "f", 1), byte_tokenizer(), max_length
    )


def test_the_last_answer_of_each_side_is_scored_with_its_end():
    (row,) = encoded()
    tokenizer = byte_tokenizer()
    shown = [
        ("".join(tokenizer.decode([i]) if on else "." for i, on in zip(ids, targets, strict=True)))
        for ids, targets in (
            (row["ids"], row["targets"]), (row["rejected_ids"], row["rejected_targets"])
        )
    ]  # fmt: skip
    assert shown == ["....yes<|end|>", "....no<|end|>"]
    assert (row["answer_start"], row["length"], row["cut"]) == (4, 8 + 7, 0)
    assert (row["prompt"], row["reference"], row["rejected"]) == ("Q", "yes", "no")


def test_the_chosen_side_is_the_row_of_a_chat():
    turns = preference.convert({"prompt": "Q", "chosen": "yes", "rejected": "no"})["messages"]
    (plain,) = chat.encode(Example({"messages": turns}, "f", 1), byte_tokenizer(), 64)
    (row,) = encoded()
    assert {n: row[n] for n in plain} == plain | {"cut": 0}


@pytest.mark.parametrize(
    "max_length, words", [(4, "no answer token within max_length=4"), (5, "equal in their first 5")]
)
def test_what_max_length_leaves_nothing_of_is_named(max_length, words):
    with pytest.raises(BadRow, match=words):
        encoded(max_length, chosen="yes a", rejected="yes b")


def test_both_sides_are_shown():
    (row,) = encoded()
    sides = [
        Preview(row[f"{s}ids"], row[f"{s}targets"], byte_tokenizer()) for s in ("", "rejected_")
    ]
    shown = PairPreview(*sides)
    assert "⟦yes<|end|>⟧" in repr(shown) and "⟦no<|end|>⟧" in repr(shown)
    assert shown._repr_html_().count("<td") == 2

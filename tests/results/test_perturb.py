"""Test rows asked in other words: what each change does to a text, and that nothing else changes."""

import json
import shutil

import numpy as np
import pytest
from helpers.runs import tiny_run

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.results import robustness
from lorakit.runs.folder import Folder

WORDS = "Trucks cannot pass; 400 people wait, since Sunday, in Vonville."


@pytest.mark.parametrize(
    "kind, share, expected",
    [
        ("lower", 1, "trucks cannot pass; 400 people wait, since sunday, in vonville."),
        ("upper", 1, "TRUCKS CANNOT PASS; 400 PEOPLE WAIT, SINCE SUNDAY, IN VONVILLE."),
        ("punctuation", 1, "Trucks cannot pass 400 people wait since Sunday in Vonville"),
        ("cut", 0.5, "Trucks cannot pass; 400 people"),
        ("cut", 1, "Trucks"),
    ],
)
def test_what_a_change_does(kind, share, expected):
    assert robustness.changed(WORDS, kind, share) == expected


@pytest.mark.parametrize("kind", robustness.KINDS)
def test_a_share_of_zero_changes_nothing_and_one_changes_something(kind):
    assert robustness.changed(WORDS, kind, 0) == WORDS != robustness.changed(WORDS, kind, 1)
    assert robustness.changed(WORDS, kind, 0.4, seed=3) == robustness.changed(
        WORDS, kind, 0.4, seed=3
    )


def test_each_kind_of_typing_error():
    class Draws:
        """Hits the second letter, with an error of the given kind."""

        def __init__(self, kind):
            self.kind = kind

        def random(self, n):
            return np.array([1.0, 0.0, *[1.0] * (n - 2)])

        def integers(self, high, size):
            return np.full(size, self.kind)

    assert [robustness.typos("bOat", 0.5, Draws(kind)) for kind in range(4)] == [
        "baOt",
        "bat",
        "bOOat",
        "bPat",
    ]
    assert robustness.typos("a1", 0.5, Draws(1)) == "a1"  # digits stay
    assert robustness._neighbour("m") == "n" and robustness._neighbour("é") == "é"


def test_typing_errors_hit_about_their_share_and_no_digit():
    text = "abcdefghij 0123456789 " * 200
    hit = robustness.changed(text, "typos", 0.1)
    letters = sum(c.isalpha() for c in text)
    assert sum(c.isdigit() for c in hit) == 2000
    changed = sum(a != b for a, b in zip(text.split(), hit.split(), strict=True))
    assert (
        0.55 < changed / 200 < 0.75 and abs(len(hit) - len(text)) < 0.05 * letters
    )  # 1 - 0.9^10 = 0.65


def test_words_out_of_order_are_the_same_words():
    mixed = robustness.changed(WORDS, "order", 1)
    assert sorted(mixed.split()) == sorted(WORDS.split()) and mixed != WORDS


def test_only_questions_change():
    fields = {
        "messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "Who"},
            {"role": "assistant", "content": "Me"},
        ],
        "columns": {"a": 1},
    }
    assert robustness.asked(fields, str.upper) == {
        "messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "WHO"},
            {"role": "assistant", "content": "Me"},
        ],
        "columns": {"a": 1},
    }
    assert robustness.asked({"text": "Who", "label": "me"}, str.upper) == {
        "text": "WHO",
        "label": "me",
    }
    with pytest.raises(LorakitError, match="plain text has neither"):
        robustness.asked({"text": "Who"}, str.upper)


def test_what_there_is_not_is_named():
    with pytest.raises(LorakitError, match="no change 'typo'; did you mean 'typos'"):
        robustness.changed(WORDS, "typo", 0.1)
    with pytest.raises(LorakitError, match="share=2 must lie between 0 and 1"):
        robustness.changed(WORDS, "typos", 2)


def test_a_finished_run_answers_again_and_the_unchanged_rows_get_the_same_answers(finished):
    references, found = robustness.answered(
        finished.path, {"same": ("upper", 0.0), "loud": ("upper", 1.0)}
    )
    assert (
        list(found) == ["unchanged", "same", "loud"]
        and len(references) == len(found["loud"].answers) == 8
    )
    assert found["same"].answers == found["unchanged"].answers
    np.testing.assert_allclose(found["same"].tokens, found["unchanged"].tokens, rtol=1e-5)
    assert (
        abs(found["loud"].tokens[:, 0] - found["same"].tokens[:, 0]).min() > 1e-4
    )  # every row's loss moved
    assert (
        found["loud"].tokens[:, 1] == found["same"].tokens[:, 1]
    ).all()  # the answers are as long as before


def test_data_that_changed_since_is_refused(base, rows_file, tmp_path, quick):
    mine = tmp_path / "rows.jsonl"
    shutil.copy(rows_file, mine)
    folder = lorakit.finetune(tiny_run(base, mine, tmp_path, max_updates=2))
    rows = [json.loads(line) for line in mine.read_text().splitlines()]
    mine.write_text("".join(json.dumps({**r, "prompt": r["prompt"] + "!"}) + "\n" for r in rows))
    with pytest.raises(LorakitError, match="rows are not those that .* was tested on"):
        robustness.answered(folder.path, {})
    mine.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(LorakitError, match="is a test row, and not to be found"):
        robustness.answered(folder.path, {})


def test_a_run_without_test_rows_has_nothing_to_ask(base, rows_file, tmp_path, quick):
    run = tiny_run(base, rows_file, tmp_path, test_fraction=0, max_updates=2)
    with pytest.raises(LorakitError, match="it had no test rows"):
        robustness.answered(lorakit.finetune(run).path, {})
    assert Folder(run.folder).record["status"] == "done"


def test_a_classifier_of_texts_answers_again(tmp_path, quick):
    rows = [
        {"text": f"{'good' if i % 2 else 'bad'} word {i}", "label": "yes" if i % 2 else "no"}
        for i in range(60)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    folder = lorakit.finetune(
        lorakit.Run(
            name="c",
            model="tiny",
            task="classify_text",
            data=str(file),
            max_updates=3,
            output_dir=str(tmp_path),
            test_fraction=0.2,
            precision="fp32",
            quantization="none",
            max_length=64,
        )
    )
    references, found = robustness.answered(folder.path, {"loud": ("upper", 1.0)})
    assert set(references) == {"no", "yes"} and found["loud"].probabilities.shape == (
        len(references),
        2,
    )

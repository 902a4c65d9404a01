"""Bad pairs, marks and calls inside good files: left out by file and row in `check` and in what is trained alike."""

import json

import pytest

import lorakit

TOOLS = [{"name": "rain", "parameters": {"city": {"type": "string"}}}]


def pair(i, **changes):
    return {
        "prompt": f"Question {i} of many?",
        "chosen": f"good {i}",
        "rejected": f"bad {i}",
        **changes,
    }


def turns(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def call(i, name="rain", arguments=None):
    given = json.dumps({"city": f"city {i}"}) if arguments is None else arguments
    asked = {"role": "user", "content": f"Does it rain in city {i}?"}
    return {"messages": [asked, {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": given}}]}], "tools": TOOLS}  # fmt: skip


def mark(i, **changes):
    return {
        "prompt": f"Question {i} of many?",
        "completion": f"answer {i}",
        "label": i % 2 == 0,
        **changes,
    }


CASES = {
    "equal": (pair, pair(7, rejected="good 7"), "equal"),
    "one side empty": (pair, pair(7, chosen=" "), "'chosen' is empty"),
    "one side null": (pair, pair(7, rejected=None), "'rejected' is null"),
    "other prompt": (
        lambda i: {"chosen": turns(f"Question {i}?", "good"), "rejected": turns(f"Question {i}?", "bad")},
        {"chosen": turns("Question 7?", "good"), "rejected": turns("Something else?", "bad")},
        "different prompts",
    ),
    "no mark": (mark, mark(7, label="perhaps"), "label"),
    "empty answer": (mark, mark(7, completion=""), "completion"),
    "broken arguments": (call, call(7, arguments='{"city": "Li'), "no JSON"),
    "unknown tool": (call, call(7, name="snow"), "'tools' does not define"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_row_is_named_by_check_and_left_out_of_training(case, base, tmp_path):
    good, bad, words = CASES[case]
    lines = [good(i) for i in range(40)]
    lines[7] = bad
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    run = lorakit.Run(data=str(path), model=base, output_dir=str(tmp_path), max_length=1024)
    prepared = lorakit.prepare(run)
    (rejected,) = prepared.report.rejected
    assert (rejected.row, rejected.file.endswith("rows.jsonl")) == (8, True)
    assert words in rejected.reason
    used = [n for some in prepared.rows.values() for n in some.column("row")]
    assert 8 not in used and len(set(used)) == 39
    checked = lorakit.check(run)
    assert checked.report.rejected == [rejected]
    assert "WRONG: 1 row cannot be used: 1 × " in checked.words() and words in checked.words()

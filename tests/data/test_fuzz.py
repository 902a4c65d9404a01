"""Any bytes whatever: rows and reasons come out, or one refusal; nothing else, and never late."""

import csv
import io
import json
import random
import tempfile
import time
from pathlib import Path

import pytest
from helpers import fuzz
from helpers.models import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.common.errors import LorakitError
from lorakit.data import loading
from lorakit.data.example import Example

SLOWEST = 1.0  # CPU seconds that one file of a few kilobytes may take


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def endure(folder, tokenizer, inputs, seed):
    """(rows read, seconds) over many damaged files. The number in a failure finds the file again."""
    rows, start = 0, time.perf_counter()
    for number in range(inputs):
        name, options, path = fuzz.damaged(folder, random.Random(f"{seed} {number}"))
        try:
            found, seconds = fuzz.tried(name, options, path, tokenizer)
        except Exception as error:
            raise AssertionError(
                f"input {number} of seed {seed}, {name}: {path.read_bytes()[:300]}"
            ) from error
        # Once more, where the machine or a collection of garbage came between.
        late = seconds > SLOWEST and fuzz.tried(name, options, path, tokenizer)[1] > SLOWEST
        assert not late, f"input {number} of seed {seed}, {name}, took {seconds:.1f} s"
        rows += found
    return rows, time.perf_counter() - start


@pytest.mark.slow
def test_damaged_files(tmp_path, tokenizer):
    rows, _ = endure(tmp_path, tokenizer, 2000, seed=0)
    assert rows > 2000  # damaged, yet read


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
def test_very_many_damaged_files(tmp_path, tokenizer, seed):
    inputs = 50_000
    rows, seconds = endure(tmp_path, tokenizer, inputs, seed)
    print(f"{inputs:,} inputs, {rows:,} rows, {inputs / seconds:,.0f} inputs/s")
    assert rows > inputs


def test_every_seed_is_whole(tmp_path, tokenizer):
    """Else the damage would stand in the seeds, and nothing behind the readers would be tried."""
    for name, seeds in fuzz.SEEDS.items():
        for content in seeds:
            path = tmp_path / "f"
            path.write_bytes(content)
            (tmp_path / "target").write_bytes(content)
            found = list(
                fuzz.FORMATS[name].read(path, **{"target": "target"} if name == "parallel" else {})
            )
            assert found and any(isinstance(row, Example) for row in found), content


# No row vanishes

text = st.text(max_size=8) | st.sampled_from(
    ["", " ", "\ud800", "\u2028", "\0", "user", "assistant", "x" * 99]
)
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", None]), "content": text}
)
column = st.sampled_from(
    ["prompt", "completion", "text", "label", "messages", "instruction", "output", "x"]
)
row = st.dictionaries(
    column, value | st.lists(turn, max_size=4), max_size=4
) | st.fixed_dictionaries({"prompt": text, "completion": text})
line = (
    row.map(json.dumps)
    | text.filter(lambda t: "\n" not in t)
    | st.just('{"prompt": "a?", "completion": "b"}')
)
cell = st.text(alphabet='ab,;"\t\r\n é\u2028', max_size=6)


def counted(name, content, given):
    """Every row of the file is usable or named, once; `given` is how many there are, None where that is a question."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            examples, report = loading.load(str(path))
        except LorakitError as error:
            assert name in str(error)
            return
    rows = [(e.file, e.row) for e in examples] + [(r.file, r.row) for r in report.rejected]
    assert len(rows) == len(set(rows)) == report.rows
    assert given is None or report.rows == given


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(line, min_size=1, max_size=8), end=st.sampled_from(["\n", "\r\n"]))
def test_no_row_of_json_lines_is_lost(lines, end):
    content = end.join(lines).encode("utf-8", "surrogatepass")
    counted("f.jsonl", content, sum(1 for one in lines if one.strip()))


@settings(max_examples=100, deadline=None)
@given(
    header=st.sampled_from(["prompt,completion", "text;label", "text", ""]),
    cells=st.lists(cell, max_size=12),
)
def test_no_row_of_a_table_is_lost(header, cells):
    counted("f.csv", (header + "\n" + "".join(cells)).encode(), None)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=6), delimiter=st.sampled_from(",;")
)
def test_every_row_of_a_sound_table_is_found(rows, delimiter):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([("prompt", "completion"), *rows])
    counted("f.csv", out.getvalue().encode(), len(rows))

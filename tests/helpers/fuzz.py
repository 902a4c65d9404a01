"""Files damaged at random, for every reader: where they come from, and what holds for any content whatever."""

import gzip
import io
import json
import pickle
import time
from types import SimpleNamespace

import pyarrow as pa
from pyarrow import parquet

from lorakit.common import registry
from lorakit.common.errors import BadRow, LorakitError
from lorakit.data import duplicates, loading
from lorakit.data.example import Example

FORMATS, SCHEMAS, TASKS = (registry.modules(folder) for folder in ("formats", "schemas", "tasks"))
TURNS = [
    {"role": "system", "content": "Short."},
    {"role": "user", "content": "Is the well safe?"},
    {"role": "assistant", "content": "Boil it first."},
]
ROWS = [
    {"messages": TURNS},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hé \u2028"}]},
    {"prompt": "How much?", "completion": "15 litres", "system": None},
    {"prompt": TURNS[1:2], "completion": TURNS[2:]},
    {"instruction": "Turn it", "input": "around", "output": "it"},
    {"text": "The river rose\ttwo metres."},
    {"text": "no water", "label": "need"},
    {"text": "a", "label": 1},
    {"text": "b", "label": 0.5, "x": [{"y": {}}]},
    {"translation": {"de": "Wasser", "en": "water"}},
    {"source": "eau", "target": "water"},
]
CSV = b'prompt,completion\n"How much, at least?",15\n"a ""b""\nc?","d\n"\nwhere?,there\n'
DEEP = b'{"text": "a", "label": "b", "c": ' + b"[" * 600 + b"]" * 600 + b"}\n"
LINES = b"Where is the well?\nBehind the school.\n\nThe river <|endoftext|> rose.\n"


def table(**columns):
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


SEEDS = {
    "csv": [
        CSV,
        CSV.replace(b",", b";"),
        b"text\tlabel\nx\ty\n",
        b"1;2\n3;4\n",
        b"\xef\xbb\xbf" + CSV,
    ],
    "tsv": [b'text\tlabel\nno water\tneed\nroad "gone\ttransport\n', CSV.replace(b",", b"\t")],
    "txt": [LINES, LINES.replace(b"<|endoftext|>", b"")],
    "json": [
        json.dumps(ROWS[2:4]).encode(),
        json.dumps({"text": ["a", "b"], "label": [1, 2]}).encode(),
        json.dumps({"version": 1, "data": ROWS[:1] * 2}, indent=1).encode(),
    ],
    "jsonl": [*(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS), DEEP * 2],
    "parquet": [
        table(prompt=["a?", None], completion=["b", "c"]),
        table(messages=[TURNS, TURNS]),
        table(
            text=["a"],
            label=pa.array([1]).dictionary_encode(),
            at=pa.array([2**62], "timestamp[ns]"),
        ),
    ],
    "parallel": [LINES, b"a\nb\nc\n"],
}
EVERY = [seed for seeds in SEEDS.values() for seed in seeds]
PIECES = [
    b'"',
    b"'",
    b",",
    b";",
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b"\\",
    b"\0",
    b"[",
    b"]",
    b"{",
    b"}",
    b":",
    b"null",
    b"true",
    b"NaN",
    b"1e999",
    b"-0",
    b'""',
    b"[]",
    b"{}",
    b"{{",
    b"{%",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\x1f\x8b",
    b"PAR1",
    b"\xe9",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\u0000",
    "\u2028\u0085\u00a0".encode(),
    b"<|endoftext|>",
    b"<|end|>",
    b"<|assistant|>",
    "\ue000answer\ue001".encode(),
    b"role",
    b"content",
    b"assistant",
    b"label",
    b"text",
    b"9" * 5000,
    b"[" * 2000,
    b'{"a":' * 300,
    b'"' * 999,
    b"," * 999,
    b"\n" * 999,
    b"x" * 9999,
]
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7")


def mutated(seed, rng):
    """The same bytes, damaged in one to five ways."""
    content = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        at = rng.randrange(len(content) + 1)
        to = min(len(content), at + rng.choice((1, 1, 4, 16, 64)))
        match rng.randrange(9):
            case 0 if content:
                content[at % len(content)] ^= 1 << rng.randrange(8)
            case 1:
                del content[at:]
            case 2:
                del content[at:to]
            case 3:
                content[at:at] = content[at:to] * rng.choice((1, 2, 50))
            case 4:
                other = rng.choice(EVERY)
                content[at:to] = other[rng.randrange(len(other)) :][: rng.choice((4, 64, 4096))]
            case 5:
                content[at:to] = rng.randbytes(to - at)
            case 6 if len(content) < 1000:
                content = bytearray(
                    content.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")
                )
            case _:
                content[at : rng.choice((at, to))] = rng.choice(PIECES)
    return bytes(content)


def damaged(folder, rng):
    """(format, its options, path of a damaged file)."""
    name = rng.choice([*SEEDS])
    content = mutated(rng.choice(SEEDS[name]), rng)
    packed = rng.random() < 0.1
    if packed:
        content = gzip.compress(content, 1)
        content = mutated(content, rng) if rng.random() < 0.5 else content
    path = folder / (f"f.{name}" + ".gz" * packed)
    path.write_bytes(content)
    options = {}
    if name == "parallel":
        (folder / "target").write_bytes(mutated(rng.choice(SEEDS[name]), rng))
        options = {"target": "target"}
    return name, options, path


def tried(name, options, path, tokenizer):
    """(rows, CPU seconds) of a file that is read, converted by every schema and encoded; refused at most."""
    start = time.process_time()
    rows, used = [], []
    try:
        rows = list(FORMATS[name].read(path, **options))
        for row in rows[:20]:
            converted(row)
        task, used = streamed(rows)
    except LorakitError as error:
        assert str(error).strip()
    for row in used[:2]:
        pickle.dumps(row.fields)  # as it is put aside
        duplicates.fingerprint(row)
        try:
            encoded = task.encode(row, tokenizer, 64)
        except BadRow:
            continue
        assert all(
            len(one["ids"]) == len(one["targets"]) <= 64 and any(one["targets"]) for one in encoded
        )
    return len(rows), time.process_time() - start


def converted(row):
    """One row by each schema, whether it is its own or not."""
    assert row.row >= 1 and row.file
    if not isinstance(row, Example):
        assert row.reason.encode()
        return
    for schema in SCHEMAS.values():
        try:
            assert schema.GIVES in schema.convert(row.fields)
        except BadRow as error:
            assert str(error).strip()


def streamed(rows):
    """(task, usable rows) as a run finds them; each row is usable or rejected."""
    reading = loading.read(SimpleNamespace(name="f", format="", path="f", read=lambda: iter(rows)))
    found = list(reading.rows)
    assert len(rows) == len(found)
    task = next(task for task in TASKS.values() if task.GIVES == SCHEMAS[reading.schema].GIVES)
    return task, [row for row in found if isinstance(row, Example)]

"""Files that cannot be used, by name: the content, and the message behind the name (… stands for any words)."""

import gzip
import io
import json

import pyarrow as pa
from pyarrow import parquet

from helpers.bad_data import lines, qa


def table(*columns, names):
    out = io.BytesIO()
    parquet.write_table(
        pa.Table.from_arrays([pa.array(c, pa.string()) for c in columns], names=names), out
    )
    return out.getvalue()


GOOD = lines(*qa())
TABLE = table(["a?", "b?"], ["c", "d"], names=["prompt", "completion"])
EMPTY = ": no usable row: it is empty, or has a header alone"
CUT = (
    ": the gzip file is cut or damaged (Compressed file ended before …); download or write it again"
)
PARQUET = ": not Parquet, or cut or damaged (…); download or write it again"
UTF16 = ": looks like UTF-16 without its mark; save the file as UTF-8"
SCHEMA = "fit no schema (alpaca: …Name them with `columns`, e.g. columns: {…}"
ENDINGS = (
    ".aif, .aiff, .arrow, .bmp, .csv, .feather, .flac, .gif, .jpeg, .jpg, .json, .jsonl, .md, .mp3, .ndjson, .ogg, "
    ".opus, .parquet, .png, .pq, .tab, .text, .tif, .tiff, .tsv, .txt, .wav, .webp, .xlsm, .xlsx, .zip"
)

# name of the file: (content, the message behind the name; … stands for any words)
UNUSABLE = {
    # nothing in it
    "empty.jsonl": ("", EMPTY),
    "blank.jsonl": ("\n \n\r\n", EMPTY),
    "empty.csv": ("", EMPTY),
    "header.csv": ("prompt,completion\n", EMPTY),
    "header.tsv": ("prompt\tcompletion\n", EMPTY),
    "empty.txt": ("", EMPTY),
    "array.json": ("[]", EMPTY),
    "inside.json": ('{"data": []}', EMPTY),
    "rows.parquet": (table([], [], names=["prompt", "completion"]), EMPTY),
    "empty.json": ("", ": the file is empty; put an array of rows there"),
    "empty.parquet": (b"", PARQUET),
    # broken
    "late.json": (
        "[\n" + ",\n".join(map(json.dumps, qa(315))) + ',\n{"prompt": }]',
        ":317: broken JSON: Expecting value (column 12). One object a line? Then name the file .jsonl",
    ),
    "deep.json": ("[" * 100_000, ": broken JSON: nested too deeply"),
    "digits.json": ("[" + "9" * 5000 + "]", ": broken JSON: Exceeds the limit (4300 digits)…"),
    "unequal.json": (
        '{"prompt": ["a", "b"], "completion": ["c"]}',
        ": the columns have unequal lengths: {'prompt': 2, 'completion': 1}",
    ),
    "number.json": ("3", ": expected an array of rows, found int without one"),
    "object.json": ('{"prompt": "a?"}', ": expected an array of rows, found dict without one"),
    "page.jsonl": (
        "<!DOCTYPE html>\n",
        ": no usable row; the first: page.jsonl:1: broken JSON: Expecting value (column 1)",
    ),
    "open.csv": (
        'prompt,completion\na?,b\n"c?,d\ne?,f\n',
        ':3: a quote is opened here and never closed; inside quotes a quote is written twice: ""',
    ),
    "cut.parquet": (TABLE[: len(TABLE) // 2], PARQUET),
    "words.parquet": (GOOD, PARQUET),
    "cut.jsonl.gz": (gzip.compress(GOOD.encode(), mtime=0)[:-20], CUT),
    "cut.parquet.gz": (gzip.compress(TABLE, mtime=0)[:-9], CUT),
    "sum.jsonl.gz": (
        gzip.compress(GOOD.encode(), mtime=0)[:-8] + bytes(8),
        ": the gzip file is cut or damaged (CRC check failed …); download or write it again",
    ),
    "long.jsonl": (
        '{"prompt": "' + "x" * 2**25,
        ":1: a line of more than 32 million characters; one object a line? A JSON array belongs into a file "
        "named .json",
    ),
    "long.csv": (
        'prompt,completion\n"' + "x" * 2**25,
        ":2: a line of more than 32 million characters; is a quote never closed? inside quotes a quote is "
        'written twice: ""',
    ),
    # not text, or in another encoding
    "image.json": (
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        ": is a PNG image, not text, whatever its name says",
    ),
    "photo.jsonl": (
        b"\xff\xd8\xff\xe0" + bytes(99),
        ": is a JPEG image, not text, whatever its name says",
    ),
    "document.txt": (b"%PDF-1.7\n", ": is a PDF document, not text, whatever its name says"),
    "office.csv": (
        b"PK\x03\x04" + bytes(99),
        ": is a ZIP archive or an Office document (save a table as CSV), not text, whatever its name says",
    ),
    "parquet.jsonl": (TABLE, ": is a Parquet file, not text, whatever its name says"),
    "image.parquet": (
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        ": is a PNG image, not Parquet, whatever its name says",
    ),
    "pointer.csv": (
        "version https://git-lfs.github.com/spec/v1\n",
        ": is a Git LFS pointer (git lfs pull fetches the file), not text, whatever its name says",
    ),
    "little.jsonl": (GOOD.encode("utf-16-le"), UTF16),
    "big.csv": ("prompt,completion\na?,b\n".encode("utf-16-be"), UTF16),
    "odd.jsonl": (
        GOOD.encode("utf-16")[:-1],
        ": begins with the mark of UTF-16 and is not (truncated data at byte …); save the file as UTF-8",
    ),
    "latin.json": (
        json.dumps(qa()).replace("answer", "café").encode("latin-1"),
        ': not UTF-8 at character 49 (Windows-1252 would read …etion": "café 0"}, {"pro…); save the file as '
        "UTF-8",
    ),
    "latin.csv": (
        "prömpt,completion\na?,b\n".encode("latin-1"),
        ": the header is not UTF-8 at character 3 (Windows-1252 would read …prömpt complet…); save the file "
        "as UTF-8",
    ),
    # columns
    "twice.csv": (
        "prompt,prompt\na?,b\n",
        ": the header is unusable: 'prompt' stands twice; name each column once. Is the first record data? "
        "Then set header: false",
    ),
    "twice.parquet": (
        table(["a?"], ["b"], names=["prompt", "prompt"]),
        ": several columns are named 'prompt'; name each column once",
    ),
    "wrong.jsonl": (lines({"prmpt": "a?", "answr": "b"}), f": the columns answr, prmpt {SCHEMA}"),
    "one.jsonl": (lines({"prompt": "a?"}), f": the columns prompt {SCHEMA}"),
    "none.jsonl": (
        "{}\n{}\n",
        ": the columns (none) fit no schema (alpaca: …Write rows with a prompt and its completion, or a text and "
        "its label",
    ),
    "headless.csv": ("How much?,Much\nWhere?,There\n", f": the columns How much?, Much {SCHEMA}"),
    "numbers.csv": (
        "1,2\n3,4\n",
        ": the columns 1, 2 fit no schema (…). …if it is a header, set format: {csv: {header: true}}. Write rows …",
    ),
    # names
    "table.xlsx": (
        b"PK\x03\x04",
        ": is no workbook that can be read (…); save the table as CSV",
    ),
    "page.docx": (
        b"PK\x03\x04",
        f": no format reads '.docx'; known endings: {ENDINGS}. Name one with `format`, e.g. format: csv",
    ),
    "comma.json": (
        '[{"prompt": "a?", "completion": "b"},]',
        ":1: broken JSON: …. A comma stands before a closing bracket; remove it",
    ),
    "table": (
        "a",
        f": no format reads ''; known endings: {ENDINGS}. Name one with `format`, e.g. format: csv",
    ),
}

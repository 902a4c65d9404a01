"""The cache of encoded rows is discarded when `FORMAT_VERSION` is raised. This test says when it must be."""

import hashlib
import json

import pytest

import lorakit
from lorakit.tasks import dataset

CASES = {
    "chat": {"data": "data/triage.jsonl"},
    "documents": {"data": "data/relief.jsonl"},
    "damaged": {"data": "data/messy.jsonl", "test_fraction": 0.0},
}
# version -> what the rows of these files were encoded to
ENCODED = {
    6: {
        "chat": "43104c85e1e36a6f",
        "documents": "4c845891b4e70e28",
        "damaged": "89812bbe66b713d9",
    },
}


def encoded(settings):
    """SHA-256 of all rows of all sets, and of what was left out."""
    prepared = lorakit.prepare(
        lorakit.Run(**settings, model="tiny", max_rows=60, max_length=256, seed=1)
    )
    rows = {
        name: [{k: str(v) for k, v in sorted(row.items()) if k != "file"} for row in some.dataset]
        for name, some in prepared.rows.items()
    }
    rejected = [(bad.row, bad.reason) for bad in prepared.report.rejected]
    content = json.dumps([rows, rejected, prepared.meta], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@pytest.mark.parametrize("case", CASES)
def test_encoded_rows_are_those_of_this_version(case):
    found = encoded(CASES[case])
    assert ENCODED[dataset.FORMAT_VERSION][case] == found, (
        "these rows are encoded differently now: raise FORMAT_VERSION in lorakit/tasks/dataset.py, "
        "so that caches are discarded, and write the new values here"
    )


def test_the_version_is_part_of_the_key(monkeypatch):
    run = lorakit.Run(data="data/triage.jsonl", model="tiny", max_rows=60)
    before = lorakit.prepare(run).path
    assert lorakit.prepare(run).path == before
    monkeypatch.setattr(dataset, "FORMAT_VERSION", dataset.FORMAT_VERSION + 1)
    assert lorakit.prepare(run).path != before


@pytest.mark.parametrize("damaged", ["rows/train/*.arrow", "rows/meta.json", "report.json"])
def test_rows_damaged_in_the_cache_are_made_anew(damaged, monkeypatch, tmp_path):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path))
    run = lorakit.Run(data="data/triage.jsonl", model="tiny", max_rows=60)
    first = lorakit.prepare(run)
    expected = first.rows["train"].column("ids")
    for path in first.path.glob(damaged):
        path.unlink()
        path.write_bytes(b"\xff" * 64)
    second = lorakit.prepare(run)
    assert second.rows["train"].column("ids") == expected
    assert str(second.report) == str(first.report)

"""Evidence about a finished run: measured, kept in its folder, shown by report, card and command line."""

import dataclasses
import json

import pytest

from lorakit import cli
from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.exporting import model_card
from lorakit.results import evidence, report
from lorakit.results.ask import ask, ask_surely
from lorakit.results.evidence import Evidence, trust
from lorakit.runs.folder import RunFolder

QUESTION = "abcde efgha bcdef ghabc?"


@pytest.fixture(scope="module")
def trusted(finished, tmp_path_factory):
    """A finished run whose threshold was looked for."""
    import shutil

    folder = tmp_path_factory.mktemp("evidence") / "run"
    shutil.copytree(finished.path, folder)
    trust.measure(folder)
    return RunFolder(folder)


def test_too_few_rows_are_said_in_report_and_card(trusted):
    kept = json.loads((trusted.path / "evidence/trust.json").read_text())
    assert not kept["told"] and kept["headline"].startswith("Cannot tell: 8 validation rows")
    report.write(trusted.path)
    for name in ("report.html", "report.md"):
        text = (trusted / name).read_text()
        assert "When should it ask a person?" in text and "8 validation rows are too few" in text
    assert (trusted / "evidence/trust.png").stat().st_size > 5000
    assert "Cannot tell: 8 validation rows" in model_card.text(trusted, None)


def test_an_answer_is_as_probable_as_its_tokens_one_by_one(trusted):
    """Of the answer to a validation row that is right: minus the loss of that row."""
    from lorakit.results.evaluate import token_sums
    from lorakit.results.open_run import open_run

    opened = open_run(trusted.path)
    rows, kept = opened.rows("validation"), evidence.read(trusted, "trust").figures
    engine = opened.engine()
    losses = token_sums(engine, rows)[:, 0]
    engine.close()
    known = kept["sets"]["validation"]
    places = evidence.one_of_each(rows.sources)
    right = [(-losses[i], c) for i, c, r in zip(places, known["confidence"], known["right"]) if r]
    assert right
    for expected, confidence in right:
        assert confidence == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("value", "sure"), [(-1e9, True), (None, False)])
def test_ask_says_when_to_ask_a_person(trusted, value, sure, capsys):
    found = evidence.read(trusted, "trust")
    figures = {**found.figures, "threshold": -1e9 if sure else 0.0}
    evidence.keep(trusted, dataclasses.replace(found, told=True, figures=figures))
    (said,) = ask_surely(trusted.path, [QUESTION])
    assert said.sure is sure and said.log_probability < 0
    assert [said.text] == ask(trusted.path, QUESTION)
    assert cli.main(["ask", str(trusted.path), QUESTION]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == said.text
    assert ("sure enough to answer by itself" if sure else "ask a person") in err
    evidence.keep(trusted, found)


def test_a_threshold_of_other_weights_does_not_count(copied):
    evidence.keep(copied, Evidence("trust", "old", True, weights={"adapter/x": "0"}))
    assert evidence.read(copied, "trust") is None and not evidence.kept(copied)
    (said,) = ask_surely(copied.path, [QUESTION])
    assert said.sure is None


def test_damaged_evidence_is_named(copied):
    (copied.path / "evidence").mkdir()
    (copied.path / "evidence/trust.json").write_text("{}")
    with pytest.raises(LorakitError) as raised:
        evidence.kept(copied)
    assert str(raised.value.where).endswith("trust.json") and raised.value.cure


@pytest.mark.parametrize("name", registry.names("evidence"))
def test_every_file_asks_a_question_and_is_shown_in_order(name):
    module = registry.load("evidence", name)
    assert module.QUESTION.endswith("?")
    assert name in evidence.ORDER and "arXiv" in module.__doc__

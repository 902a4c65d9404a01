"""A rehearsal runs all of it on a shrunken model, changes four settings and no other, and says what stands in."""

import ast
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.paths import ROOT

import lorakit
from lorakit import cli
from lorakit.common.errors import LorakitError
from lorakit.data import loading
from lorakit.models import base_model, reading
from lorakit.notebook.rehearse import clear, rehearse, stand_in, template_of
from lorakit.run import Run
from lorakit.runs.folder import Folder, read_lines

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FOUR = {"model", "max_updates", "max_rows", "output_dir"}
STAND_IN = "STAND-IN TOKENIZER: that of microsoft/Phi-3-mini-4k-instruct is not on this machine"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_yaml(**settings):
    run = Run(
        **{
            "name": "mine",
            "model": "phi-3-mini",
            "data": str(ROOT / "data/triage.jsonl"),
            "max_length": 512,
            "max_new_tokens": 8,
            "quantization": "nf4",
            "learning_rate": 3e-3,
            **settings,
        }
    )
    run.write("RUN.yaml")
    return run


# A run


def test_a_run_of_a_model_that_is_not_here(here, quick, capsys):
    asked, began = run_yaml(epochs=7, rank=4), time.perf_counter()
    assert cli.main(["rehearse", "RUN.yaml"]) == 0
    assert time.perf_counter() - began < 60
    folder = Folder("outputs/rehearsal/mine")
    assert folder.record["status"] == "done" and len(folder.history()[0]) == 4
    assert folder.record["data"]["rows"] == {"train": 52, "validation": 6, "test": 6}
    assert folder.record[
        "trained_parameters"
    ] == 4 * sum(  # qkv, o, gate and up, down: in + out, of two blocks
        2 * (a + b) for a, b in ((96, 288), (96, 96), (96, 512), (256, 96))
    )
    said = capsys.readouterr().out
    first, second, *_, last = said.splitlines()
    assert first.startswith("REHEARSAL: 6") and first.endswith(
        " weights of its architecture stand in for phi-3-mini"
    )
    assert second.startswith(STAND_IN) and said.count(STAND_IN) == 2  # before and after
    assert (
        "rehearsed RUN.yaml in " in said and last == "the real thing: the same with 'lorakit train'"
    )
    # The record and the report say so too.
    assert [line for line in folder.record["data"]["lines"] if line.startswith(STAND_IN)]
    assert STAND_IN in (folder / "report.md").read_text(encoding="utf-8")
    # Nothing else is overridden.
    assert changed(asked.model_dump(), folder.record["settings"]) == FOUR
    resolved = Run.read(folder / "run.yaml").model_dump()
    assert {n for n in changed(asked.model_dump(), resolved) if getattr(asked, n) != "auto"} == FOUR
    assert (resolved["quantization"], resolved["epochs"], resolved["max_rows"]) == ("nf4", 7, 64)
    assert resolved["model"] == "outputs/rehearsal/models/phi-3-mini"


def test_weights_that_cannot_be_quantized_are_refused_before_something_stands_in(here):
    """The stand-in's could be."""
    run_yaml(model="gpt-oss-20b", quantization="nf4")
    with pytest.raises(
        LorakitError,
        match="of gpt-oss-20b are stored as mxfp4 already and cannot be quantized again",
    ):
        rehearse("RUN.yaml")


def changed(one, other):
    return {name for name in one if one[name] != other[name]}


@pytest.mark.slow
def test_a_second_rehearsal_starts_anew_and_takes_other_settings(base, rows_file, here, quick):
    run_yaml(model=base, data=rows_file, quantization="none")
    quiet = lambda words: None
    first = rehearse("RUN.yaml", say=quiet)
    again = rehearse("RUN.yaml", {"rank": 2, "seed": 1}, say=quiet)
    assert first == again and Folder(again).record["settings"]["rank"] == 2


def test_only_finished_rehearsals_are_forgotten(here):
    real, old, busy = (
        Folder(here / name) for name in ("rehearsal", "rehearsal/old", "rehearsal/busy")
    )
    for folder in (real, old, busy):
        folder.path.mkdir()
        folder.note(status="done")
    (here / "rehearsal/rows").mkdir()  # of a real run whose name is `rehearsal`
    with busy.locked():
        clear(here / "rehearsal")
    assert {p.name for p in (here / "rehearsal").iterdir()} == {"record.json", "rows", "busy"}


def test_a_small_model_is_taken_as_it_is(base, here):
    assert stand_in(base, here) == (base, [f"model={base}: small enough to be taken as it is"])
    assert stand_in("tiny", here) == ("tiny", ["model=tiny: small enough to be taken as it is"])
    assert not list(here.iterdir())


def attached(folder, tokenizer_of=None, **config):
    """A folder as a user attaches it: a configuration, perhaps a tokenizer. Its weights are not looked at."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer_of:
        reading.tokenizer(tokenizer_of)[0].save_pretrained(folder)
    return str(folder)


LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def test_a_large_model_keeps_its_own_tokenizer(base, here):
    path, notes = stand_in(attached(here / "large", base, **LLAMA), here / "models")
    assert (
        path == str(here / "models/large")
        and len(notes) == 1
        and notes[0].startswith("REHEARSAL: ")
    )
    config = base_model.config(path)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (262, 96, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.eos_token_id) == (
        4,
        2,
        257,
    )
    tokenizer, said = reading.tokenizer(path)
    assert tokenizer("hi")["input_ids"] == [71, 72] and said == notes


def test_what_cannot_be_rehearsed_says_why(here):
    bloom = attached(here / "bloom", model_type="bloom", hidden_size=1024, n_layer=24, n_head=16)
    with pytest.raises(
        LorakitError,
        match=r"bloom: no file in lorakit/models/families/ says how to shrink a bloom; add one",
    ):
        stand_in(bloom, here / "models")
    with pytest.raises(LorakitError, match=r"large could not be loaded: .*"):
        stand_in(
            attached(here / "large", **LLAMA), here / "models"
        )  # no tokenizer, and it is the user's own folder


def test_a_failed_rehearsal_says_what_stood_in(here):
    run_yaml(max_length=8)
    with pytest.raises(
        LorakitError, match=rf"no answer token within max_length=8.*\nIn this .*\n.*\n{STAND_IN}"
    ):
        rehearse("RUN.yaml", say=lambda words: None)


def test_the_tokenizer_in_the_hubs_cache_is_found(base, here, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here))
    repo = here / "models--Qwen--Qwen3-0.6B"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("a" * 40)
    (repo / "snapshots").mkdir()
    attached(repo / "snapshots" / ("a" * 40), base, model_type="qwen3")
    path, notes = stand_in("qwen3-0.6b", here / "small")
    assert len(notes) == 1 and base_model.config(path).vocab_size == 262
    assert reading.tokenizer(path)[0]("hi")["input_ids"] == [71, 72]


def test_the_template_of_the_model_where_it_can_be_had(here, monkeypatch):
    path, notes = stand_in("qwen3-0.6b", here)
    tokenizer, _ = reading.tokenizer(path)
    asked = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert {"<|im_end|>", "<think>"} <= set(tokenizer.all_special_tokens)
    assert "the chat template of the model" in notes[1]
    monkeypatch.setattr("lorakit.notebook.rehearse.ASSETS", here)  # where no template lies
    assert template_of(base_model.spec("qwen3-0.6b")) == ""
    path, notes = stand_in("qwen3-0.6b", here)
    assert "a chat template of its own" in notes[1]
    assert reading.tokenizer(path)[0].chat_template == reading.tokenizer("tiny")[0].chat_template


# A sample of the rows


def written(path, n):
    path.write_text(
        "".join(
            json.dumps({"prompt": f"question {i}", "completion": f"{i}"}) + "\n" for i in range(n)
        )
    )
    return str(path)


def test_max_rows_draws_by_seed_each_row_as_often(tmp_path):
    file = written(tmp_path / "f.jsonl", 20)
    drawn = [
        tuple(e.row for e in loading.load(file, max_rows=5, seed=seed)[0]) for seed in range(200)
    ]
    assert all(len(set(rows)) == 5 and list(rows) == sorted(rows) for rows in drawn)
    often = Counter(row for rows in drawn for row in rows)  # 50 times each
    assert set(often) == set(range(1, 21)) and all(27 <= n <= 77 for n in often.values())
    assert tuple(e.row for e in loading.load(file, max_rows=5, seed=3)[0]) == drawn[3]
    everything, report = loading.load(file, max_rows=20)
    assert [e.row for e in everything] == list(range(1, 21)) and not report.notes
    report = loading.load(file, max_rows=5)[1]
    assert (report.rows, report.notes) == (20, ["max_rows=5: a sample of 5 of the 20 usable rows"])


def test_max_rows_holds_for_each_file_and_counts_usable_rows(base, tmp_path):
    file, test = written(tmp_path / "f.jsonl", 40), written(tmp_path / "t.jsonl", 30)
    with open(file, "a") as out:
        out.write("{\n" * 5)
    run = Run(data=file, test_data=test, model=base, validation_fraction=0.25, max_length=128)
    some = lorakit.prepare(run.with_(max_rows=12))
    assert len(some.rows["test"]) == 12
    assert (
        0 < len(some.rows["train"]) + len(some.rows["validation"]) <= 12
    )  # rows that are tests too are left out
    assert len(some.report.rejected) >= 5 and some.report.rows == 45
    assert "test rows: max_rows=12: a sample of 12 of the 30 usable rows" in some.report.notes
    assert (
        len(lorakit.prepare(run).rows["test"]) == 30
    )  # another setting, other rows: no cache mixes them
    assert run.with_(max_rows=12).differences(run) == {"max_rows": (12, None)}
    with pytest.raises(LorakitError, match="max_rows=0"):
        run.with_(max_rows=0)


# Notebooks


def notebook(path, parameters, code):
    cells = [
        {
            "cell_type": "code",
            "execution_count": None,
            "outputs": [],
            "id": str(i),
            "source": source,
            "metadata": {"tags": ["parameters"]} if i == 0 else {},
        }
        for i, source in enumerate((parameters, code))
    ]
    kernel = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    path.write_text(
        json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


def test_a_notebook_gets_the_four_and_keeps_the_rest(here, capsys):
    pytest.importorskip("papermill")
    path = notebook(
        here / "n.ipynb",
        "model = 'tiny'\nmax_updates = None\nmax_rows = None\nrate = 1 / 3\n"
        "output_dir = 'runs'\nseed = 5",
        "import json\nseen = [model, max_updates, max_rows, rate, output_dir, seed]\n"
        "open('seen.json', 'w').write(json.dumps(seen))  # instead of launch(run)",
    )
    assert cli.main(["rehearse", str(path), "-p", "seed", "6"]) == 0
    assert json.loads((here / "seen.json").read_text()) == [
        "tiny",
        4,
        64,
        1 / 3,
        "runs/rehearsal",
        6,
    ]
    assert (here / "runs/rehearsal/n/n.ipynb").exists()
    assert capsys.readouterr().out.splitlines()[-1] == "the real thing: the same with 'lorakit run'"


def test_a_notebook_that_trains_without_handing_them_on_is_refused(here):
    pytest.importorskip("papermill")
    path = notebook(here / "n.ipynb", "model = 'tiny'\noutput_dir = 'o'", "lorakit.launch(run)")
    with pytest.raises(
        LorakitError,
        match=r"n\.ipynb: has no parameter 'max_updates'; a notebook that can be .* "
        "model, max_updates, max_rows, output_dir from its parameters to Run",
    ):
        rehearse(path)


def test_a_notebook_or_a_run_that_is_not_there(here, capsys):
    pytest.importorskip("papermill")
    (here / "bad.ipynb").write_text("{")
    for name, words in (
        ("none.ipynb", "no such notebook"),
        ("bad.ipynb", "cannot be read as a notebook"),
        ("none.yaml", "no such file"),
    ):
        assert cli.main(["rehearse", name]) == 1
        assert f"lorakit: {name}: {words}" in capsys.readouterr().err


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_trains_hands_the_four_on(path):
    """Of every notebook of ours with a parameter `model` that starts a run."""
    cells = [
        c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
    ]
    sources = [
        "\n".join(line for line in "".join(c["source"]).splitlines() if line[:1] not in ("%", "!"))
        for c in cells
    ]
    (given,) = (
        ast.parse(s)
        for s, c in zip(sources, cells)
        if "parameters" in c["metadata"].get("tags", [])
    )
    names = {target.id for statement in given.body for target in statement.targets}
    calls = [n for s in sources for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Call)]
    called = {getattr(n.func, "attr", getattr(n.func, "id", "")) for n in calls}
    if "model" in names and called & {"launch", "finetune"}:
        assert names >= FOUR
        handed = {
            k.arg
            for n in calls
            for k in n.keywords
            if getattr(n.func, "attr", getattr(n.func, "id", "")) in ("Run", "dict")
            and isinstance(k.value, ast.Name)
            and k.value.id == k.arg
        }
        assert handed >= FOUR


def test_a_stand_in_is_the_whole_model(tmp_path):
    """Not the decoder alone, which transformers knows as a language model."""
    folder, _ = stand_in("whisper-tiny", tmp_path)
    assert base_model.config(folder).architectures == ["WhisperForConditionalGeneration"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_is_rehearsed(path, here):
    pytest.importorskip("papermill")
    rehearse(path, {"data": str(ROOT / "data/relief.jsonl")} if "alpaca" in path.stem else {})
    for record in Path("outputs/rehearsal").glob("*/record.json"):
        folder = Folder(record.parent)
        assert folder.record["status"] == "done" and 1 <= len(folder.history()[0]) <= 4
        assert len(read_lines(folder / "answers.jsonl")) <= 64


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "gemma-3-270m",
        "gemma-3-4b",
        "gemma-3n-e2b",
        "gpt-oss-20b",
        "llama-3.2-1b",
        "mistral-7b",
        "opt-125m",
        "qwen3-0.6b",
        "smollm2-135m",
    ],
)
def test_a_whole_run_of_each_family(model, here, quick):
    """Scored, trained, saved, loaded again; in NF4 where the hub's weights allow it."""
    run_yaml(model=model, quantization="none" if base_model.spec(model).stored else "nf4")
    assert Folder(rehearse("RUN.yaml")).record["status"] == "done"


def test_a_rehearsal_carries_the_chat_template_of_every_family():
    from lorakit.common import registry
    from lorakit.notebook.rehearse import template_of

    for name in registry.names("models"):
        spec = registry.load("models", name).SPEC
        assert not spec.template or "{" in template_of(spec), name

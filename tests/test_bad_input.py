"""Settings, bases, disks and folders gone wrong: one message says where, why and what to do, and nothing is lost."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from helpers.bad_data import lines, put, qa, refused, said
from helpers.models import TEMPLATE, byte_tokenizer, save_base
from helpers.runs import tiny_run
from transformers import LlamaConfig

from lorakit.common.errors import LorakitError
from lorakit.runs.folder import Folder, read_lines
from lorakit.tasks import rows
from lorakit.training import checkpoint


def contents(folder, *but):
    """Every file of a run, except the lock and those of these names."""
    return {
        p: p.read_bytes()
        for p in Path(folder).rglob("*")
        if p.is_file() and p.name not in (".lock", *but)
    }


def adapter(folder):
    return hashlib.sha256((folder / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def settings(tmp_path, base, rows_file):
    """(changes) -> a file with the settings of `tiny_run`, its folder tmp_path/copied; a text is written as it is."""

    def write(changes=None, **more):
        path = tmp_path / "s.yaml"
        if isinstance(changes, (str, bytes)):
            put(path, changes)
        else:
            given = (
                tiny_run(base, rows_file, tmp_path, name="copied").given() | (changes or {}) | more
            )
            path.write_text(yaml.safe_dump({k: v for k, v in given.items() if v is not ...}))
        return path

    return write


# Settings: refused before anything is spent, and the finished run in that folder stays as it was

# (settings, message; … stands for any words)
UNREAL = {
    "unknown": (
        {"learning_rat": 1},
        "{s}: unknown setting 'learning_rat'; did you mean 'learning_rate'?",
    ),
    "missing": ({"data": ...}, "{s}: the setting 'data' is missing"),
    "zero": ({"rank": 0}, "{s}: rank=0: input should be greater than or equal to 1"),
    "half": (
        {"rank": 1.5},
        "{s}: rank=1.5: input should be a valid integer, got a number with a fractional part",
    ),
    "none": ({"rank": None}, "{s}: rank=None: input should be a valid integer"),
    "words": (
        {"learning_rate": "fast"},
        "{s}: learning_rate='fast': input should be a valid number, …",
    ),
    "negative": ({"learning_rate": -1}, "{s}: learning_rate=-1: input should be greater than 0"),
    "nan": ({"learning_rate": math.nan}, "{s}: learning_rate=nan: input should be a finite number"),
    "infinite": ({"alpha": math.inf}, "{s}: alpha=inf: input should be a finite number"),
    "neither": ({"packing": "maybe"}, "{s}: packing='maybe': input should be a valid boolean, …"),
    "list": ({"data": ["a.jsonl"]}, "a.jsonl: no such file …"),
    "seed below": ({"seed": -1}, "{s}: seed=-1: input should be greater than or equal to 0"),
    "seed above": (
        {"seed": 2**64},
        "{s}: seed=18446744073709551616: input should be less than 9223372036854775808",
    ),
    "updates": (
        {"max_updates": 0},
        "{s}: max_updates=0: input should be greater than or equal to 1",
    ),
    "updates above": (
        {"max_updates": 10**30},
        "{s}: max_updates=1000…: input should be less than or equal to 10…",
    ),
    "epochs": ({"epochs": 0}, "{s}: epochs=0: input should be greater than or equal to 1"),
    "length": ({"max_length": 4}, "{s}: max_length=4: input should be greater than or equal to 8"),
    "minutes": ({"max_minutes": 0}, "{s}: max_minutes=0: input should be greater than 0"),
    "dropout": ({"dropout": 1.0}, "{s}: dropout=1.0: input should be less than 1"),
    "optimizer": (
        {"optimizer": "sgd"},
        "{s}: optimizer='sgd': input should be 'adamw', 'adamw_8bit', …",
    ),
    "schedule": (
        {"schedule": "steps"},
        "{s}: schedule='steps': input should be 'linear', 'cosine' or 'constant'",
    ),
    "name": (
        {"name": "a/b"},
        "{s}: name='a/b' names a folder: letters, digits, '-', '_' and '.' only, 100 at most",
    ),
    "parent": (
        {"name": ".."},
        "{s}: name='..' names a folder: letters, digits, '-', '_' and '.' only, 100 at most",
    ),
    "NUL": (
        {"output_dir": "a\0b"},
        "{s}: output_dir='a\\x00b' holds NUL or a byte that is not UTF-8; use another name",
    ),
    "metrics": ({"metrics": 7}, "{s}: metrics=7: input should be a valid list; …"),
    "expression": ({"target_modules": "["}, "{s}: target_modules='[' is no regular expression: …"),
    # contradictions
    "full, nf4": (
        {"method": "full", "quantization": "nf4"},
        "{s}: method='full' and quantization='nf4' contradict: quantized weights cannot be trained; use lora or "
        "quantization=none",
    ),
    "full, dora": (
        {"method": "full", "use_dora": True, "alpha": ..., "dropout": ...},
        "{s}: method='full' and use_dora=True contradict: there is no adapter that it could shape",
    ),
    "dora, int8": (
        {"use_dora": True, "quantization": "int8"},
        "{s}: use_dora=True and quantization='int8' contradict: DoRA needs nf4 or none",
    ),
    "file, share": (
        {"test_data": "a.jsonl", "test_fraction": 0.2},
        "{s}: test_data='a.jsonl' and test_fraction=0.2 contradict: name a file or a share, not both",
    ),
    "shares": (
        {"validation_fraction": 0.6, "test_fraction": 0.4},
        "{s}: validation_fraction=0.6 and test_fraction=0.4 contradict: nothing is left to train on",
    ),
    "stopping, never": (
        {"early_stopping": 2, "validate_every": 0},
        "{s}: early_stopping=2 and validate_every=0 contradict: stopping early needs validation",
    ),
    "stopping, none": (
        {"early_stopping": 2, "validation_fraction": 0.0},
        "{s}: early_stopping=2 and validation_fraction=0.0 contradict: stopping early needs validation rows",
    ),
    "rows at a time": (
        {"micro_batch_size": 16},
        "{s}: micro_batch_size=16 and global_batch_size=8 contradict: a micro-batch is a part of the global batch",
    ),
    "tokens at a time": (
        {"micro_batch_tokens": 64},
        "{s}: micro_batch_tokens=64 and max_length=128 contradict: one row of full length must fit a micro-batch",
    ),
    # names that nothing has
    "engine": ({"engine": "warp"}, "there is no engine 'warp'; use one of …torch…"),
    "task": (
        {"task": "caht"},
        "there is no task 'caht'; did you mean 'chat'? Use one of caption, chat, …",
    ),
    "format": (
        {"format": "jsnol"},
        "there is no format 'jsnol'; did you mean 'jsonl'? Use one of …csv, …",
    ),
    "model": (
        {"model": "nowhere"},
        "model='nowhere': no such folder, and not a hub id (owner/name). Known by name: …",
    ),
    "model's id": (
        {"model": "nobody/nothing"},
        "nobody/nothing could not be loaded: We couldn't connect to …",
    ),
    "model's folder": (
        {"model": "{f}"},
        "model='{f}': {f} holds no config.json, so it is not a saved model",
    ),
    # the data
    "data": ({"data": "nowhere.jsonl"}, "nowhere.jsonl: no such file (looked from …)"),
    "data's id": (
        {"data": "nobody/nothing"},
        "nobody/nothing: HF_HUB_OFFLINE is set, and this is not in the local …",
    ),
    "empty": (
        {"data": "{f}/empty.jsonl"},
        "{f}/empty.jsonl: no usable row: it is empty, or has a header alone",
    ),
    "column": (
        {"columns": {"prompt": "promt"}},
        "rows.jsonl: columns names 'promt', which no row has; did you mean 'prompt'? (columns: completion, prompt)",
    ),
    "group": (
        {"group_by": "promt"},
        "group_by='promt': no row has that column; did you mean 'prompt'? (columns: completion, prompt)",
    ),
    "one row": (
        {"data": "{f}/one.jsonl"},
        "{f}/one.jsonl: 1 rows in 1 groups leave no validation row; add rows, raise validation_fraction, name "
        "validation_data, or set validation_fraction to 0",
    ),
    "one class": (
        {"data": "{f}/class.jsonl"},
        "{f}/class.jsonl: every row has the label 'x': there is nothing to tell apart",
    ),
    "test rows": (
        {"test_data": "{rows}"},
        "{rows}: no row is left to train on: each stands in the rows given for test too, or resembles one there; name "
        "other rows",
    ),
    "too long": (
        {"max_length": 8},
        "no train row can be used; the first: rows.jsonl:…: no answer token within max_length=8 (the row has …)",
    ),
    # another run than the one that is there
    "rate": (
        {"learning_rate": 2e-3},
        "{f}/copied holds a run with other settings (learning_rate: 0.001 there, 0.002 now). Give this run another "
        "name, restore the settings, or delete the folder",
    ),
    "content": (
        {"data": "{f}/other.jsonl"},
        "{f}/copied holds a run with other settings (data: '{rows}' there, '{f}/other.jsonl' now). Give this run another name, restore the settings, or delete the folder",
    ),
}


@pytest.fixture
def here(tmp_path, rows_file, base):
    """(text) -> the text with the paths of this test: {f} its folder, {s} the settings, {rows}, {base}."""
    paths = {"{f}": tmp_path, "{s}": tmp_path / "s.yaml", "{rows}": rows_file, "{base}": base}

    def call(text):
        for name, path in paths.items():
            text = text.replace(name, str(path)) if isinstance(text, str) else text
        return text

    return call


def small_files(folder):
    put(folder / "empty.jsonl", "")
    put(folder / "one.jsonl", lines(*qa(1)))
    put(folder / "class.jsonl", lines(*({"text": f"text {i}", "label": "x"} for i in range(30))))
    put(folder / "other.jsonl", lines(*qa(30)))


# What is found only after the settings of the folder's run were compared.
AFTER_THE_FOLDER = (
    "model's id",
    "data's id",
    "empty",
    "column",
    "group",
    "one row",
    "one class",
    "test rows",
    "too long",
)


@pytest.mark.parametrize("name", UNREAL)
def test_settings_that_cannot_be_leave_a_run_as_it_was(
    capsys, copied, settings, here, tmp_path, name
):
    small_files(tmp_path)
    changes, words = UNREAL[name]
    before, changes = contents(copied.path), {k: here(v) for k, v in changes.items()}
    if name in AFTER_THE_FOLDER:
        refused(
            capsys,
            here("{f}/copied holds a run with other settings (…"),
            "train",
            settings(changes),
        )
        changes |= {"name": "fresh"}
    refused(capsys, here(words), "train", settings(changes))
    assert contents(copied.path) == before


@pytest.mark.parametrize("name", ["unknown", "full, nf4", "model", "data", "group", "one row"])
def test_a_plan_of_settings_that_cannot_be(capsys, settings, here, tmp_path, name):
    small_files(tmp_path)
    changes, words = UNREAL[name]
    refused(capsys, here(words), "plan", settings({k: here(v) for k, v in changes.items()}))
    assert not (tmp_path / "copied").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "data: [unclosed",
            "cannot be read as YAML: while parsing a flow sequence…line 1, column 7…",
        ),
        (
            "data: a\n\tb: c",
            "cannot be read as YAML: while scanning for the next token…line 2, column 1…",
        ),
        ("data: x\nrank: [", "cannot be read as YAML: while parsing a flow node…line 2, column 8…"),
        ("- a\n- b", "expected 'setting: value' lines, found list"),
        ("", "expected 'setting: value' lines, found NoneType"),
        ("just words", "expected 'setting: value' lines, found str"),
        ("rank: " + "9" * 5000, "cannot be read as YAML: Exceeds the limit (4300 digits)…"),
        ("data: !!float ''", "cannot be read as YAML: …"),
        (
            "data: !!python/object:os.system x",
            "cannot be read as YAML: could not determine a constructor for the tag…",
        ),
        ("[" * 1000, "cannot be read as YAML: maximum recursion depth exceeded…"),
        (
            b"data: caf\xe9.jsonl",
            "cannot be read as YAML: 'utf-8' codec can't decode byte 0xe9 in position 9: …",
        ),
        (
            b"\x89PNG\r\n\x1a\n",
            "cannot be read as YAML: 'utf-8' codec can't decode byte 0x89 in position 0: …",
        ),
        ("1: 2", "unknown setting '1'"),
    ],
    ids=lambda x: repr(x)[:24],
)
def test_files_that_hold_no_settings(capsys, settings, text, words):
    path = settings(text)
    for command in ("train", "plan", "check"):
        refused(capsys, f"{path}: {words}", command, path)


def test_settings_that_are_not_there(capsys, tmp_path):
    refused(
        capsys,
        f"{tmp_path}/no.yaml: no such file (looked from …); write one with: lorakit init",
        "train",
        tmp_path / "no.yaml",
    )
    refused(capsys, f"{tmp_path}: no file in it can be read (it has none; …)", "train", tmp_path)
    refused(
        capsys,
        "seed='2024-02-31': input should be a valid integer, …",
        "check",
        "a",
        "--set",
        "seed=2024-02-31",
    )


# Settings that only the model or the rows can refuse: before training, and the folder says `failed` and why

LATE = {
    "metric": (
        {"metrics": ["exakt_match"]},
        "there is no metric 'exakt_match'; did you mean 'exact_match'? …",
    ),
    "two metrics in one": (
        {"metrics": [{"bleu": {}, "chrf": {}}]},
        "metrics: {'bleu': {}, 'chrf': {}} is not one metric with options, e.g. exact_match: {pattern: …}",
    ),
    "no metric": (
        {"metrics": [{}]},
        "metrics: {} is not one metric with options, e.g. exact_match: {pattern: …}",
    ),
    "metric's option": (
        {"metrics": [{"exact_match": {"patern": "x"}}]},
        "metrics: exact_match has no option 'patern'; it has pattern, ignore_case",
    ),
    "metric's expression": (
        {"metrics": [{"exact_match": {"pattern": "("}}]},
        "metrics: exact_match: missing ), unterminated subpattern at position 0",
    ),
    "expression without a group": (
        {"metrics": [{"exact_match": {"pattern": "x"}}]},
        "metrics: exact_match: the pattern 'x' needs a group, in parentheses, that holds the answer",
    ),
    "expression without a match": (
        {"metrics": [{"exact_match": {"pattern": "#### (.*)"}}]},
        "metrics: exact_match: row 0: the pattern '#### (.*)' finds nothing in the reference",
    ),
    "metric of another task": (
        {"metrics": ["roc_auc"]},
        "metrics: 'roc_auc' needs probabilities, which this task does not give",
    ),
    "layer": (
        {"target_modules": ["q_prj"]},
        "target_modules: {base} has no layer 'q_prj'; it has down_proj, gate_proj, k_proj, lm_head, …",
    ),
    "layers by expression": (
        {"target_modules": "q_prj"},
        "target_modules='q_prj': Target modules q_prj not found in the base model. …",
    ),
    "no layer": ({"target_modules": []}, "target_modules=[]: No `target_modules` passed …"),
    "positions": (
        {"max_length": 1000},
        "max_length=1000 is longer than the 512 positions of {base}",
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_settings_that_the_model_refuses(capsys, quick, settings, here, tmp_path, name):
    changes, words = LATE[name]
    message = refused(capsys, here(words), "train", settings(changes))
    folder = Folder(tmp_path / "copied")
    assert folder.history() == ([], [])
    if folder.record["status"] == "queued":  # refused before anything was written
        return
    assert (folder.record["status"], folder.record["error"]) == ("failed", message)
    assert message[:40] in (folder / "report.md").read_text()


def test_a_folder_that_failed_is_free_for_the_right_settings(capsys, quick, settings, tmp_path):
    refused(
        capsys,
        "there is no metric 'exakt_match'…",
        "train",
        settings(metrics=["exakt_match"], max_updates=2),
    )
    assert said(capsys, "train", settings(metrics=["exact_match"], max_updates=2))[0] == 0
    record = Folder(tmp_path / "copied").record
    assert (record["status"], record["error"]) == ("done", None)


# The base


def changed(name, **values):
    """A file of JSON with some values replaced, without those that are `...`."""

    def change(folder):
        found = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))

    return change


def written(name, content):
    return lambda folder: put(folder / name, content)


def more_tokens(folder):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(100)])
    tokenizer.save_pretrained(folder)


AGAIN = "Its files may be cut, or of several models: download it again"
LOADING = "{f}/base could not be loaded: "
REFUSES = "no train row can be used; the first: rows.jsonl:76: the chat template refuses it: "
SILENT = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] == 'user' else '' }}")
BASES = {
    "no configuration": (
        lambda folder: os.unlink(folder / "config.json"),
        "model='{f}/base': {f}/base holds no config.json, so it is not a saved model",
    ),
    "broken configuration": (
        written("config.json", "{"),
        LOADING + "It looks like the config file at …. " + AGAIN,
    ),
    "a list for it": (written("config.json", "[]"), LOADING + "…. " + AGAIN),
    "a size that is no number": (
        changed("config.json", hidden_size="x"),
        LOADING + "Validation error for field 'hidden_size': …. " + AGAIN,
    ),
    "no heads": (changed("config.json", num_attention_heads=0), LOADING + "…. " + AGAIN),
    "unknown kind": (
        changed("config.json", model_type="wizard"),
        LOADING + "The checkpoint you are trying to load has model type `wizard` but …. " + AGAIN,
    ),
    "no generator": (
        changed("config.json", model_type="t5"),
        "these rows and model=… do not go together: they are for chat, which a t5 cannot do; …",
    ),
    "cut weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
        LOADING
        + "Error while deserializing header: incomplete metadata, file not fully covered. "
        + AGAIN,
    ),
    "no weights": (
        lambda folder: os.unlink(folder / "model.safetensors"),
        LOADING + "Error no file named …. " + AGAIN,
    ),
    "weights of a smaller model": (
        changed("config.json", num_hidden_layers=3),
        "{f}/base: the files lack 9 of the model's tensors, which would be random: "
        "'model.layers.2.input_layernorm.weight', …; download it again, or name the model that they belong to",
    ),
    "weights of another shape": (changed("config.json", vocab_size=400), LOADING + "…. " + AGAIN),
    "another tokenizer": (
        more_tokens,
        "{f}/base: the tokenizer has 362 tokens, the model 300; they do not belong together",
    ),
    "broken tokenizer": (written("tokenizer.json", "{"), LOADING + "…. " + AGAIN),
    "empty tokenizer": (written("tokenizer.json", "{}"), LOADING + "…. " + AGAIN),
    "no end token": (
        changed("tokenizer_config.json", eos_token=...),
        "{f}/base: its tokenizer has no end-of-sequence token, so a trained answer could never end",
    ),
    "a template without the end": (
        written("chat_template.jinja", TEMPLATE.replace("<|end|>", "")),
        "rows.jsonl:76: the chat template of this model ends an answer without a special token, so that a model "
        "trained on it would never stop. Use the instruct version of the model, or a tokenizer whose template ends the "
        "assistant's turn with the end-of-sequence token",
    ),
    "a template without answers": (
        written("chat_template.jinja", SILENT),
        "rows.jsonl:76: the chat template of this model leaves the words of an answer out (it was written for images "
        "and text in parts). Use a model whose template takes plain text",
    ),
    "a broken template": (
        written("chat_template.jinja", "{% for m in messages %}{{ m['role'] }"),
        REFUSES + "unexpected '}'",
    ),
    "a template that refuses": (
        written("chat_template.jinja", "{{ raise_exception('no roles') }}"),
        REFUSES + "no roles",
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_cannot_be_used(capsys, quick, settings, here, base, tmp_path, name):
    change, words = BASES[name]
    shutil.copytree(base, tmp_path / "base")
    change(tmp_path / "base")
    message = refused(
        capsys, here(words), "train", settings(model=str(tmp_path / "base"), max_updates=1)
    )
    assert Folder(tmp_path / "copied").record.get("error", message) == message


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (
            lambda folder: os.unlink(folder / "chat_template.jinja"),
            "the base has no chat template; turns are written as 'Question: …' and 'Answer: …', an answer ends with "
            "'<|end|>'",
        ),
        (
            changed("tokenizer_config.json", pad_token=...),
            "the tokenizer has no padding token; the end token pads, and padding is never a target",
        ),
    ],
    ids=["no template", "no padding token"],
)
def test_a_base_that_lacks_something_is_completed_and_noted(
    capsys, quick, settings, base, tmp_path, change, note
):
    shutil.copytree(base, tmp_path / "base")
    change(tmp_path / "base")
    assert said(capsys, "train", settings(model=str(tmp_path / "base"), max_updates=2))[0] == 0
    folder = Folder(tmp_path / "copied")
    assert folder.record["status"] == "done" and note in folder.record["data"]["lines"]
    plain = re.split("[<']", note)[0]  # Markdown's own characters are escaped
    assert f"- {plain}" in (folder / "report.md").read_text()


def test_padding_with_the_end_token_changes_nothing(capsys, quick, settings, base, tmp_path):
    """The end of each answer is trained, the padding behind it is not: the losses are those of another padding."""
    shutil.copytree(base, tmp_path / "base")
    changed("tokenizer_config.json", pad_token="<|end|>")(tmp_path / "base")
    for name, model in (("own", base), ("end", str(tmp_path / "base"))):
        assert (
            said(capsys, "train", settings(name=name, model=model, packing=False, max_updates=3))[0]
            == 0
        )
    own, end = (
        [u["loss"] for u in Folder(tmp_path / name).history()[0]] for name in ("own", "end")
    )
    assert own == end
    for row in rows.read(tmp_path / "end" / "rows")[0]["train"].first(9):
        assert row["ids"][-1] == 257 and row["targets"][-1]


# The files of a run


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


RECORD = "{f}/copied/record.json: is damaged (…); restore it, or give the run another name"
UNKNOWN = (
    "{f}/copied holds a checkpoint, and record.json does not say of which settings; give this run another name, "
    "or delete the folder"
)
SCORES = "{f}/copied/scores.json: is damaged (…); lorakit evaluate writes it again"
AFTER = "{f}/copied/outcomes/after.json: is damaged (…); start the run again under another name"
BACK = "put the file of the run back, or start the run again under another name"
CHANGED = "has changed since the run saved it; " + BACK
UNSAVED = "has nothing saved yet (status {status}); end the run with lorakit train"
# (file, what happens to it, command, message)
DAMAGED = [
    ("record.json", b"", "train", RECORD),
    ("record.json", cut, "report", RECORD),
    ("record.json", b"[]", "compare", RECORD),
    ("record.json", b'{"settings": 3}', "train", RECORD),
    ("record.json", b'{"status": "done"}', "train", UNKNOWN),
    ("record.json", os.unlink, "train", UNKNOWN),
    (
        "record.json",
        b'{"status": "done"}',
        "compare",
        "{f}/copied/record.json: does not name the data and the metrics; start the run again under another name",
    ),
    (
        "record.json",
        os.unlink,
        "ask",
        "{f}/copied: no run here (record.json is missing); name a folder like outputs/quickstart",
    ),
    ("run.yaml", b"data: [x", "ask", "{f}/copied/run.yaml: cannot be read as YAML: …"),
    (
        "run.yaml",
        b"[]",
        "evaluate",
        "{f}/copied/run.yaml: expected 'setting: value' lines, found list",
    ),
    (
        "run.yaml",
        b"data: x\nrnak: 3",
        "compare",
        "{f}/copied/run.yaml: unknown setting 'rnak'; did you mean 'rank'?",
    ),
    (
        "run.yaml",
        os.unlink,
        "ask",
        "{f}/copied/run.yaml: no such file; write the settings of a run there (see README)",
    ),
    (
        "history.jsonl",
        b'{"update": 1, "loss": 2}\nxx\n',
        "report",
        "{f}/copied/history.jsonl:2: is damaged (Expecting value…); delete the line and start again",
    ),
    (
        "history.jsonl",
        b'{"loss": 2}\n',
        "report",
        "{f}/copied/history.jsonl:1: is damaged ('update' is missing); delete the line and start again",
    ),
    (
        "answers.jsonl",
        b"3\n",
        "compare",
        "{f}/copied/answers.jsonl:1: is damaged (expected an object {…}, found int); delete the line and start again",
    ),
    ("scores.json", b"{", "report", SCORES),
    ("scores.json", b'{"loss": {"before": 1}}', "report", SCORES),
    ("outcomes/after.json", cut, "compare", AFTER),
    ("outcomes/after.json", b'{"tokens": [], "answers": []}', "compare", AFTER),
    ("rows/meta.json", b"{}", "ask", "{f}/copied/rows/meta.json: " + CHANGED),
    ("rows/test/state.json", b"{}", "evaluate", "{f}/copied/rows/test/state.json: " + CHANGED),
    (
        "rows/train/data-00000-of-00001.arrow",
        cut,
        "evaluate",
        "{f}/copied/rows/train/…: " + CHANGED,
    ),
    ("rows", shutil.rmtree, "evaluate", "{f}/copied/rows/meta.json: is missing; " + BACK),
    ("adapter", shutil.rmtree, "ask", "{f}/copied: " + UNSAVED.replace("{status}", "done")),
    (
        "adapter/adapter_config.json",
        b"{}",
        "ask",
        "{f}/copied/adapter/adapter_config.json: " + CHANGED,
    ),
    ("adapter/adapter_model.safetensors", cut, "ask", "{f}/copied/adapter/…: " + CHANGED),
    (
        "adapter/adapter_model.safetensors",
        os.unlink,
        "evaluate",
        "{f}/copied/adapter/…: is missing; " + BACK,
    ),
]


@pytest.mark.parametrize(
    ("file", "damage", "command", "words"),
    DAMAGED,
    ids=[f"{command} {file} {i}" for i, (file, _, command, _) in enumerate(DAMAGED)],
)
def test_damaged_files_of_a_run_are_named(
    capsys, quick, finished, copied, settings, here, file, damage, command, words
):
    put(copied / file, damage) if isinstance(damage, bytes) else damage(copied / file)
    before = contents(copied.path)
    more = {"ask": ["abc?"], "compare": [finished.path], "evaluate": ["--metrics", "cer"]}.get(
        command, []
    )
    refused(capsys, here(words), command, settings() if command == "train" else copied.path, *more)
    assert contents(copied.path) == before


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, cut], ids=["empty", "zeros", "cut in half"])
def test_a_damaged_checkpoint(capsys, quick_drawn, copied, settings, damage):
    """Nothing but the record of the attempt changes, and the adapter of before can still be asked."""
    path = copied / "checkpoint/last.safetensors"
    put(path, damage) if isinstance(damage, bytes) else damage(path)
    notes = ("record.json", "run.yaml", "report.md", "report.html", "loss.png")
    before = contents(copied.path, *notes)
    refused(
        capsys,
        f"{path}: the checkpoint is damaged (…); delete it to begin anew",
        "train",
        settings(max_updates=14),
    )
    assert contents(copied.path, *notes) == before
    assert said(capsys, "ask", copied.path, "abc?", "--max-new-tokens", 1)[0] == 0


def test_a_vocabulary_that_is_too_small(capsys, settings, tmp_path):
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    small = save_base(tmp_path / "small", config)
    refused(
        capsys,
        f"{small}: the tokenizer has 262 tokens, the model 200; they do not belong together",
        "train",
        settings(model=small),
    )


# Commands on runs that are not what they need


@pytest.fixture
def stopped(capsys, quick, settings, tmp_path):
    """A run that was stopped after its first update."""
    assert said(capsys, "train", settings(max_minutes=1e-9, max_updates=4))[0] == 0
    return Folder(tmp_path / "copied")


def test_a_run_that_is_not_finished(capsys, stopped, finished):
    before, path = contents(stopped.path), stopped.path
    refused(capsys, f"{path}: " + UNSAVED.replace("{status}", "stopped"), "ask", path, "abc?")
    refused(
        capsys,
        f"{path}: " + UNSAVED.replace("{status}", "stopped"),
        "evaluate",
        path,
        "--metrics",
        "cer",
    )
    refused(capsys, f"{path}: has no scores yet (status stopped)", "compare", finished.path, path)
    assert contents(path) == before


def test_one_run_and_no_run(capsys, finished, tmp_path):
    refused(capsys, "compare needs two runs or more", "compare", finished.path)
    for command, *more in (("ask", "abc?"), ("evaluate",), ("report",), ("compare", finished.path)):
        refused(
            capsys,
            f"{tmp_path}: no run here (record.json is missing); name a folder like outputs/quickstart",
            command,
            tmp_path,
            *more,
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--metrics", "bleau"],
            "there is no metric 'bleau'; did you mean 'bleu'? Use one of …",
        ),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file (looked from …)"),
        (
            ["--data", "{f}/wrong.jsonl"],
            "wrong.jsonl: the columns words fit no schema (…). …",
        ),
        (
            ["--data", "{f}/trained.jsonl"],
            "{f}/trained.jsonl: the run trained on every row of it; these rows prove nothing; "
            "name rows that it has not seen",
        ),
    ],
)
def test_rows_and_metrics_that_cannot_be_scored(
    capsys, copied, rows_file, here, tmp_path, options, words
):
    tested = {answer["prompt"] for answer in read_lines(copied / "answers.jsonl")}
    known = Path(rows_file).read_text().splitlines()
    put(
        tmp_path / "trained.jsonl",
        lines(*(line for line in known if json.loads(line)["prompt"] not in tested)),
    )
    put(tmp_path / "wrong.jsonl", lines({"words": "a"}))
    before = contents(copied.path)
    refused(capsys, here(words), "evaluate", copied.path, *map(here, options))
    assert contents(copied.path) == before


def test_a_question_that_is_too_long(capsys, finished):
    refused(
        capsys,
        "a prompt has 603 tokens, and the model 512 positions",
        "ask",
        finished.path,
        "a" * 600,
    )


# The disk, and other processes


def full(real, name):
    """Stands in for `os.replace`: the disk is full when a file of this name takes its place."""

    def replace(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target)

    return replace


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["record.json", "rows", "last.safetensors", "adapter", "scores.json", "report.html"]
)
def test_a_full_disk(capsys, quick, settings, finished, tmp_path, monkeypatch, name):
    """Whatever could not be written: with room again the run ends as if nothing had happened."""
    path, folder = settings(), Folder(tmp_path / "copied")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full(os.replace, name))
        refused(
            capsys,
            f"{folder.path}/…{name}: could not be written: No space left on device…. Free some space or "
            "name another output_dir, then start again: the run goes on",
            "train",
            path,
        )
    assert not list(folder.path.rglob("*.part*"))
    assert said(capsys, "train", path)[0] == 0
    assert folder.record["status"] == "done" and adapter(folder) == adapter(finished)
    assert [u["loss"] for u in folder.history()[0]] == [u["loss"] for u in finished.history()[0]]


def test_a_full_disk_when_the_history_is_written(
    capsys, quick, settings, finished, tmp_path, monkeypatch
):
    path, folder, lines_written = settings(), Folder(tmp_path / "copied"), []

    def failing(file, *more, **options):
        lines_written.extend([file] if Path(file).name == "history.jsonl" else [])
        if len(lines_written) == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(file, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr("lorakit.runs.folder.open", failing, raising=False)
        refused(
            capsys,
            f"{folder.path}/history.jsonl: could not be written: No space left on device; free some space "
            "and start again: the run goes on from its checkpoint",
            "train",
            path,
        )
    assert said(capsys, "train", path)[0] == 0
    assert adapter(folder) == adapter(finished)
    assert [u["update"] for u in folder.history()[0]] == list(range(1, 13))


def test_a_cache_that_cannot_be_written(capsys, quick, settings, tmp_path, monkeypatch):
    put(tmp_path / "file", "mine")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "file" / "cache"))
    refused(
        capsys,
        f"{tmp_path}/file/cache: the cache cannot be written (Not a directory); name another folder in the "
        "environment variable LORAKIT_CACHE",
        "train",
        settings(),
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_folder_that_cannot_be_written(capsys, settings, tmp_path, monkeypatch):
    put(tmp_path / "file", "mine")
    refused(
        capsys,
        f"{tmp_path}/file/copied: cannot be written (Not a directory); name another output_dir",
        "train",
        settings(output_dir=str(tmp_path / "file")),
    )
    assert (tmp_path / "file").read_text() == "mine"

    def read_only(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = settings(output_dir=str(tmp_path / "new"))
    monkeypatch.setattr(Path, "mkdir", read_only)
    refused(
        capsys,
        f"{tmp_path}/new/copied: cannot be written (Read-only file system); name another output_dir",
        "train",
        path,
    )


def test_two_runs_into_one_folder(capsys, copied, settings):
    before = contents(copied.path)
    with copied.locked():
        refused(
            capsys,
            f"{copied.path}: another run is writing here; give this one another name, or wait, or stop "
            "that one",
            "train",
            settings(max_updates=14),
        )
    assert contents(copied.path) == before


# Training


def test_a_rate_that_is_far_too_high(capsys, quick, settings, tmp_path):
    message = refused(
        capsys,
        "the loss became nan at update 2…; lower learning_rate (1e+30 now), or use precision=fp32 or bf16",
        "train",
        settings(learning_rate=1e30, schedule="constant", warmup_ratio=0.0),
    )
    folder = Folder(tmp_path / "copied")
    assert (folder.record["status"], folder.record["error"]) == ("failed", message)
    assert [u["update"] for u in folder.history()[0]] == [1] and message in (
        folder / "report.md"
    ).read_text()
    assert not (folder / "adapter").exists()


def test_a_loss_that_is_no_number_later_on(
    capsys, quick, settings, finished, tmp_path, monkeypatch
):
    """At update 6 of 12, with checkpoints after 4 and 8: the run goes on from update 4 once the cause is gone."""
    from lorakit.engines.torch.engine import TorchEngine

    real, calls = TorchEngine.backward, []

    def backward(self, batch):
        loss, count = real(self, batch)
        calls.append(batch)
        return (math.nan if len(calls) == 6 else loss), count

    path, folder = settings(), Folder(tmp_path / "copied")
    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "backward", backward)
        refused(
            capsys,
            "the loss became nan at update 6…; lower learning_rate (…), or use precision=fp32 or bf16",
            "train",
            path,
        )
    assert checkpoint.read(folder / "checkpoint/last.safetensors")[1]["state"]["update"] == 4
    assert said(capsys, "train", path)[0] == 0
    assert adapter(folder) == adapter(finished)
    assert [u["update"] for u in folder.history()[0]] == list(range(1, 13))


def test_bad_rows_are_left_out_of_a_run_and_named(capsys, quick, settings, rows_file, tmp_path):
    bad = [
        '{"prompt": "a?", "completion": null}',
        '{"prompt": }',
        "[1]",
        '{"prompt": "\\ud800?", "completion": "b"}',
        json.dumps({"prompt": "x" * 200, "completion": "b"}),
        Path(rows_file).read_text().splitlines()[0],
    ]
    put(tmp_path / "rows.jsonl", Path(rows_file).read_text() + lines(*bad))
    assert said(capsys, "train", settings(data=str(tmp_path / "rows.jsonl"), max_updates=2))[0] == 0
    folder = Folder(tmp_path / "copied")
    assert folder.record["status"] == "done"
    assert sorted(
        (r["row"], r["file"], r["reason"]) for r in read_lines(folder / "rejected.jsonl")
    ) == [
        (81, "rows.jsonl", "'completion' is null"),
        (82, "rows.jsonl", "broken JSON: Expecting value (column 12)"),
        (83, "rows.jsonl", "expected an object {…}, found list"),
        (84, "rows.jsonl", "'prompt' holds half a character (a lone surrogate)"),
        (85, "rows.jsonl", "no answer token within max_length=128 (the row has 205 tokens)"),
        (86, "rows.jsonl", "repeats rows.jsonl:1"),
    ]


def test_notebooks_that_are_none(tmp_path):
    pytest.importorskip("papermill")
    from lorakit.notebook.execute import execute

    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(LorakitError, match="bad.ipynb: cannot be read as a notebook"):
        execute(tmp_path / "bad.ipynb", {})
    real = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
    with pytest.raises(LorakitError, match="-p rank \\[: the value cannot be read as YAML"):
        execute(real, {"rank": "["}, tmp_path)

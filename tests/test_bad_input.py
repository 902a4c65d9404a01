"""Settings, bases, disks and folders gone wrong: one message with the place, the cause and the cure, and nothing lost."""

import errno
import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TEMPLATE, byte_tokenizer, save_base, tiny_run
from test_bad_data import lines, put, qa, refusal, said
from transformers import LlamaConfig

import lorakit
from lorakit import checkpoint, rows
from lorakit.errors import LorakitError
from lorakit.record import Folder, read_lines


def contents(folder, *but):
    """Every file of a run, except the lock and those of these names."""
    return {p: p.read_bytes() for p in Path(folder).rglob("*")
            if p.is_file() and p.name not in (".lock", *but)}


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
            given = tiny_run(base, rows_file, tmp_path, name="copied").given() | (changes or {}) | more
            path.write_text(yaml.safe_dump({k: v for k, v in given.items() if v is not ...}))
        return path

    return write


# Settings: refused before anything is spent, and the finished run in that folder stays as it was

CLASH = "contradict: "
UNREAL = {
    "unknown": ({"learning_rat": 1}, "s.yaml: unknown setting 'learning_rat'; did you mean 'learning_rate'?"),
    "missing": ({"data": ...}, "s.yaml: the setting 'data' is missing"),
    "zero": ({"rank": 0}, "s.yaml: rank=0: input should be greater than or equal to 1"),
    "half": ({"rank": 1.5}, "s.yaml: rank=1.5: input should be a valid integer, got a number with a fractional part"),
    "none": ({"rank": None}, "s.yaml: rank=None: input should be a valid integer"),
    "words": ({"learning_rate": "fast"}, "s.yaml: learning_rate='fast': input should be a valid number, unable to "
                                         "parse"),
    "negative": ({"learning_rate": -1}, "s.yaml: learning_rate=-1: input should be greater than 0"),
    "nan": ({"learning_rate": math.nan}, "s.yaml: learning_rate=nan: input should be a finite number"),
    "infinite": ({"alpha": math.inf}, "s.yaml: alpha=inf: input should be a finite number"),
    "neither": ({"packing": "maybe"}, "s.yaml: packing='maybe': input should be a valid boolean"),
    "list": ({"data": ["a.jsonl"]}, "s.yaml: data=['a.jsonl']: input should be a valid string"),
    "seed below": ({"seed": -1}, "s.yaml: seed=-1: input should be greater than or equal to 0"),
    "seed above": ({"seed": 2**64}, "s.yaml: seed=18446744073709551616: input should be less than 9223372036854775808"),
    "updates above": ({"max_updates": 10**30}, f"s.yaml: max_updates={10**30}: input should be less than or equal to "),
    "updates": ({"max_updates": 0}, "s.yaml: max_updates=0: input should be greater than or equal to 1"),
    "epochs": ({"epochs": 0}, "s.yaml: epochs=0: input should be greater than or equal to 1"),
    "length": ({"max_length": 4}, "s.yaml: max_length=4: input should be greater than or equal to 8"),
    "minutes": ({"max_minutes": 0}, "s.yaml: max_minutes=0: input should be greater than 0"),
    "dropout": ({"dropout": 1.0}, "s.yaml: dropout=1.0: input should be less than 1"),
    "choice": ({"optimizer": "sgd"}, "s.yaml: optimizer='sgd': input should be 'adamw', 'adamw_8bit', "),
    "schedule": ({"schedule": "steps"}, "s.yaml: schedule='steps': input should be 'linear', 'cosine' or 'constant'"),
    "name": ({"name": "a/b"}, "s.yaml: name='a/b' names a folder: letters, digits, '-', '_' and '.' only"),
    "parent": ({"name": ".."}, "s.yaml: name='..' names a folder: letters, digits, '-', '_' and '.' only"),
    "nul": ({"output_dir": "a\0b"}, "s.yaml: output_dir='a\\x00b' holds NUL or a byte that is not UTF-8; use another "
                                    "name"),
    "metric's form": ({"metrics": "bleu"}, "s.yaml: metrics='bleu': input should be a valid list; "),
    "expression": ({"target_modules": "["}, "s.yaml: target_modules='[' is no regular expression: "),
    # contradictions
    "full, nf4": ({"method": "full", "quantization": "nf4"}, f"s.yaml: method='full' and quantization='nf4' {CLASH}"
                  "quantized weights cannot be trained; use lora or quantization=none"),
    "full, dora": ({"method": "full", "use_dora": True}, f"s.yaml: method='full' and use_dora=True {CLASH}it is a "
                                                         "variant "
                   "of lora"),
    "dora, int8": ({"use_dora": True, "quantization": "int8"}, "s.yaml: use_dora=True and quantization='int8' "
        f"{CLASH}DoRA "
                   "needs nf4 or none"),
    "file, share": ({"test_data": "a.jsonl", "test_fraction": 0.2}, "s.yaml: test_data='a.jsonl' and test_fraction=0.2 "
                    f"{CLASH}name a file or a share, not both"),
    "shares": ({"validation_fraction": 0.6, "test_fraction": 0.4}, "s.yaml: validation_fraction=0.6 and "
        "test_fraction=0.4 "
               f"{CLASH}nothing is left to train on"),
    "stopping, never": ({"early_stopping": 2, "validate_every": 0}, "s.yaml: early_stopping=2 and validate_every=0 "
                        f"{CLASH}stopping early needs validation"),
    "stopping, none": ({"early_stopping": 2, "validation_fraction": 0.0}, "s.yaml: early_stopping=2 and "
                       f"validation_fraction=0.0 {CLASH}stopping early needs validation rows"),
    "rows at a time": ({"micro_batch_size": 16}, f"s.yaml: micro_batch_size=16 and global_batch_size=8 {CLASH}a "
                       "micro-batch is a part of the global batch"),
    "tokens at a time": ({"micro_batch_tokens": 64}, f"s.yaml: micro_batch_tokens=64 and max_length=128 {CLASH}one "
                                                     "row of "
                         "full length must fit a micro-batch"),
    # names that nothing has
    "engine": ({"engine": "warp"}, "there is no 'warp' in engines/ Present: torch."),
    "task": ({"task": "caht"}, "there is no 'caht' in tasks/; did you mean 'chat'? Present: chat, text."),
    "format": ({"format": "jsnol"}, "there is no 'jsnol' in formats/; did you mean 'jsonl'? Present: csv, "),
    "model": ({"model": "nowhere"}, "model='nowhere': no such folder, and not a hub id (owner/name). Known by name: "),
    "model's id": ({"model": "nobody/nothing"}, "nobody/nothing could not be loaded: We couldn't connect to "),
    "model's folder": ({"model": "{folder}"}, "model='{folder}': {folder} holds no config.json, so it is not a saved "
                                              "model"),
    # the data
    "data": ({"data": "nowhere.jsonl"}, "nowhere.jsonl: no such file (looked from "),
    "data's id": ({"data": "nobody/nothing"}, "nobody/nothing: HF_HUB_OFFLINE is set, and this is not in the local "
                                              "cache "),
    "empty": ({"data": "{folder}/empty.jsonl"}, "{folder}/empty.jsonl: no usable row: it is empty, or has a header "
                                                "alone"),
    "column": ({"columns": {"prompt": "promt"}}, "rows.jsonl: columns names 'promt', which no row has; did you mean "
               "'prompt'? (columns: completion, prompt)"),
    "group": ({"group_by": "promt"}, "group_by='promt': no row has that column; did you mean 'prompt'? (columns: "
              "completion, prompt)"),
    "one row": ({"data": "{folder}/one.jsonl"}, "{folder}/one.jsonl: 1 rows in 1 groups leave no validation row; add "
                                                "rows, raise "
                "validation_fraction, name validation_data, or set validation_fraction to 0"),
    "one class": ({"data": "{folder}/class.jsonl"}, "{folder}/class.jsonl: every row has the label 'x': there is "
                                                    "nothing "
                  "to tell apart"),
    "test rows": ({"test_data": "{rows}"}, "{rows}: no row is left to train on: each stands in the rows given for test "
                  "too, or resembles one there; name other rows"),
    "too long": ({"max_length": 8}, "no train row can be used; the first: rows.jsonl:"),
    # another run than the one that is there
    "rate": ({"learning_rate": 2e-3}, "{folder}/copied holds a run with other settings (learning_rate: 0.001 there, "
                                      "0.002 "
             "now). Give this run another name, restore the settings, or delete the folder"),
    "content": ({"data": "{folder}/other.jsonl"}, "{folder}/copied holds a run with other settings (data: '{rows}' "
                                                  "there, "
                "'{folder}/other.jsonl' now; the content of the data: {rows} has changed since)"),
}


@pytest.mark.parametrize("name", UNREAL)
def test_settings_that_cannot_be_leave_a_run_as_it_was(capsys, copied, settings, rows_file, tmp_path, name):
    changes, words = UNREAL[name]

    def here(text):
        return text.replace("{folder}", str(tmp_path)).replace("{rows}", rows_file) if isinstance(text, str) else text

    put(tmp_path / "empty.jsonl", "")
    put(tmp_path / "one.jsonl", lines(*qa(1)))
    put(tmp_path / "class.jsonl", lines(*({"text": f"text {i}", "label": "x"} for i in range(30))))
    put(tmp_path / "other.jsonl", lines(*qa(30)))
    before = contents(copied.path)
    message = refusal(capsys, "train", settings({k: here(v) for k, v in changes.items()}))
    assert message.removeprefix(f"{tmp_path}/").startswith(here(words).removeprefix(f"{tmp_path}/")), message
    assert contents(copied.path) == before


@pytest.mark.parametrize("name", ["unknown", "full, nf4", "model", "data", "group", "one row"])
def test_a_plan_of_settings_that_cannot_be(capsys, settings, tmp_path, name):
    changes, words = UNREAL[name]
    put(tmp_path / "one.jsonl", lines(*qa(1)))
    given = {k: v.replace("{folder}", str(tmp_path)) if isinstance(v, str) else v for k, v in changes.items()}
    assert words.replace("{folder}", str(tmp_path)) in refusal(capsys, "plan", settings(given))
    assert not (tmp_path / "copied").exists()


@pytest.mark.parametrize(("text", "words"), [
    ("data: [unclosed", "cannot be read as YAML: while parsing a flow sequence"),
    ("data: a\n\tb: c", "cannot be read as YAML: while scanning for the next token"),
    ("- a\n- b", "expected 'setting: value' lines, found list"),
    ("", "expected 'setting: value' lines, found NoneType"),
    ("just words", "expected 'setting: value' lines, found str"),
    ("data: 2024-02-31", "cannot be read as YAML: day is out of range for month"),
    ("rank: " + "9" * 5000, "cannot be read as YAML: Exceeds the limit (4300 digits)"),
    ("data: !!float ''", "cannot be read as YAML: "),
    ("data: !!python/object:os.system x", "cannot be read as YAML: could not determine a constructor for the tag"),
    ("[" * 2000, "cannot be read as YAML: maximum recursion depth exceeded"),
    (b"data: caf\xe9.jsonl", "cannot be read as YAML: 'utf-8' codec can't decode byte 0xe9 in position 9"),
    (b"\x89PNG\r\n\x1a\n", "cannot be read as YAML: 'utf-8' codec can't decode byte 0x89 in position 0"),
    ("1: 2", "unknown setting '1'"),
    ("data: x\ndata: [", "cannot be read as YAML: while parsing a flow node"),
], ids=lambda x: repr(x)[:24])
def test_files_that_hold_no_settings(capsys, settings, text, words):
    path = settings(text)
    for command in ("train", "plan", "check"):
        assert refusal(capsys, command, path).startswith(f"{path}: {words}")


def test_settings_that_are_not_there(capsys, tmp_path):
    assert refusal(capsys, "train", tmp_path / "no.yaml") == (
        f"{tmp_path}/no.yaml: no such file; write the settings of a run there (see README)")
    assert refusal(capsys, "train", tmp_path).startswith(f"{tmp_path}: cannot be read as YAML: [Errno 21] Is a "
                                                         "directory")
    assert refusal(capsys, "check", "rows.jsonl", "--set", "seed=2024-02-31") == (
        "--set seed=2024-02-31: the value cannot be read as YAML")


# Settings that only the model or the rows can refuse: before training, and the folder says `failed` and why

LATE = {
    "metric": ({"metrics": ["exakt_match"]}, "there is no 'exakt_match' in metrics/; did you mean 'exact_match'? "
                                             "Present: "),
    "two metrics in one": ({"metrics": [{"bleu": {}, "chrf": {}}]}, "metrics: {'bleu': {}, 'chrf': {}} is not one "
        "metric "
                           "with options, e.g. exact_match: {pattern: …}"),
    "no metric": ({"metrics": [{}]}, "metrics: {} is not one metric with options, e.g. exact_match: {pattern: …}"),
    "metric's option": ({"metrics": [{"exact_match": {"patern": "x"}}]}, "metrics: exact_match: rows() got an "
        "unexpected "
                        "keyword argument 'patern'"),
    "metric's expression": ({"metrics": [{"exact_match": {"pattern": "("}}]}, "metrics: exact_match: missing ), "
                            "unterminated subpattern at position 0"),
    "expression without a group": ({"metrics": [{"exact_match": {"pattern": "x"}}]}, "metrics: exact_match: the "
        "pattern "
                                   "'x' needs a group, in parentheses, that holds the answer"),
    "expression without a match": ({"metrics": [{"exact_match": {"pattern": "#### (.*)"}}]}, "metrics: exact_match: "
        "row 0: "
                                   "the pattern '#### (.*)' finds nothing in the reference"),
    "metric of another task": ({"metrics": ["roc_auc"]}, "metrics: 'roc_auc' needs probabilities, which this task "
                                                         "does not "
                               "give"),
    "layer": ({"target_modules": ["q_prj"]}, "target_modules: {base} has no layer 'q_prj'; it has down_proj, "
                                             "gate_proj, "),
    "layers by expression": ({"target_modules": "q_prj"}, "target_modules='q_prj': Target modules q_prj not found in "
                                                          "the "
                             "base model"),
    "no layer": ({"target_modules": []}, "target_modules=[]: No `target_modules` passed"),
    "positions": ({"max_length": 1000}, "max_length=1000 is longer than the 512 positions of {base}"),
}


@pytest.mark.parametrize("name", LATE)
def test_settings_that_the_model_refuses(capsys, quick, settings, base, tmp_path, name):
    changes, words = LATE[name]
    message = refusal(capsys, "train", settings(changes))
    assert message.startswith(words.replace("{base}", base)), message
    folder = Folder(tmp_path / "copied")
    assert (folder.record["status"], folder.record["error"]) == ("failed", message)
    assert folder.history() == ([], []) and message[:40] in (folder / "report.md").read_text()


def test_a_folder_that_failed_is_free_for_the_right_settings(capsys, quick, settings, tmp_path):
    refusal(capsys, "train", settings(metrics=["exakt_match"], max_updates=2))
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
SILENT = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] == 'user' else '' }}")
BASES = {
    "no configuration": (lambda f: os.unlink(f / "config.json"),
                         "model='{base}': {base} holds no config.json, so it is not a saved model"),
    "broken configuration": (written("config.json", "{"), "{base} could not be loaded: It looks like the config file "
                                                          "at "),
    "a list for it": (written("config.json", "[]"), "{base} could not be loaded: "),
    "a size that is no number": (changed("config.json", hidden_size="x"),
                                 "{base} could not be loaded: Validation error for field 'hidden_size': "),
    "no heads": (changed("config.json", num_attention_heads=0), "{base} could not be loaded: "),
    "unknown kind": (changed("config.json", model_type="wizard"), "{base} could not be loaded: The checkpoint you are "
                     "trying to load has model type `wizard`"),
    "no generator": (changed("config.json", model_type="t5"), "{base}: "),
    "cut weights": (lambda f: os.truncate(f / "model.safetensors", 5000), "{base} could not be loaded: Error while "
                    "deserializing header: incomplete metadata, file not fully covered. " + AGAIN),
    "no weights": (lambda f: os.unlink(f / "model.safetensors"), "{base} could not be loaded: Error no file named "),
    "weights of a smaller model": (changed("config.json", num_hidden_layers=3), "{base}: the files lack 9 of the "
        "model's "
                                   "tensors, which would be random: 'model.layers.2.input_layernorm.weight', …; "
                                   "download "
                                   "it again, or name the model that they belong to"),
    "weights of another shape": (changed("config.json", vocab_size=400), "{base} could not be loaded: "),
    "another tokenizer": (more_tokens, "{base}: the tokenizer has 362 tokens, the model 300; they do not belong "
                                       "together"),
    "broken tokenizer": (written("tokenizer.json", "{"), "{base} could not be loaded: "),
    "empty tokenizer": (written("tokenizer.json", "{}"), "{base} could not be loaded: 'added_tokens'. " + AGAIN),
    "no end token": (changed("tokenizer_config.json", eos_token=...), "{base}: its tokenizer has no end-of-sequence "
                     "token, so a trained answer could never end"),
    "a template without the end": (written("chat_template.jinja", TEMPLATE.replace("<|end|>", "")),
        "rows.jsonl:76: the "
                                   "chat template of this model ends an answer without a special token, so that a "
                                   "model "
                                   "trained on it would never stop. Use the instruct version of the model, or a "
                                   "tokenizer "
                                   "whose template ends the assistant's turn with the end-of-sequence token"),
    "a template without answers": (written("chat_template.jinja", SILENT), "rows.jsonl:76: the chat template of this "
        "model "
                                   "leaves the words of an answer out (it was written for images and text in parts). "
                                   "Use "
                                   "a model whose template takes plain text"),
    "a broken template": (written("chat_template.jinja", "{% for m in messages %}{{ m['role'] }"),
                                  "no train row can be "
                          "used; the first: rows.jsonl:76: the chat template refuses it: unexpected '}'"),
    "a template that refuses": (written("chat_template.jinja", "{{ raise_exception('no roles') }}"),
        "no train row can be "
                                "used; the first: rows.jsonl:76: the chat template refuses it: no roles"),
}


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_cannot_be_used(capsys, quick, settings, base, tmp_path, name):
    change, words = BASES[name]
    shutil.copytree(base, tmp_path / "base")
    change(tmp_path / "base")
    message = refusal(capsys, "train", settings(model=str(tmp_path / "base"), max_updates=1))
    assert message.startswith(words.replace("{base}", str(tmp_path / "base"))), message
    assert Folder(tmp_path / "copied").record["error"] == message


@pytest.mark.parametrize(("change", "note"), [
    (lambda folder: os.unlink(folder / "chat_template.jinja"), "the base has no chat template; turns are written as "
     "'Question: …' and 'Answer: …', an answer ends with '<|end|>'"),
    (changed("tokenizer_config.json", pad_token=...), "the tokenizer has no padding token; the end token pads, and "
                                                      "padding "
     "is never a target"),
], ids=["no template", "no padding token"])
def test_a_base_that_lacks_something_is_completed_and_noted(capsys, quick, settings, base, tmp_path, change, note):
    shutil.copytree(base, tmp_path / "base")
    change(tmp_path / "base")
    assert said(capsys, "train", settings(model=str(tmp_path / "base"), max_updates=2))[0] == 0
    folder = Folder(tmp_path / "copied")
    assert folder.record["status"] == "done" and note in folder.record["data"]["lines"]
    assert f"- {note}" in (folder / "report.md").read_text()


def test_padding_with_the_end_token_changes_nothing(capsys, quick, settings, base, tmp_path):
    """The end of each answer is trained, the padding behind it is not: the losses are those of another padding."""
    shutil.copytree(base, tmp_path / "base")
    changed("tokenizer_config.json", pad_token="<|end|>")(tmp_path / "base")
    for name, model in (("own", base), ("end", str(tmp_path / "base"))):
        assert said(capsys, "train", settings(name=name, model=model, packing=False, max_updates=3))[0] == 0
    own, end = ([u["loss"] for u in Folder(tmp_path / name).history()[0]] for name in ("own", "end"))
    assert own == end
    for row in rows.read(tmp_path / "end" / "rows")[0]["train"].first(9):
        assert row["ids"][-1] == 257 and row["targets"][-1]


# The files of a run

def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def other_base(folder):
    """Points a run to a base of another width."""
    config = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                         max_position_embeddings=512, bos_token_id=256, eos_token_id=257, pad_token_id=258)
    save_base(folder.parent / "narrow", config)
    text = (folder / "run.yaml").read_text()
    (folder / "run.yaml").write_text(yaml.safe_dump(yaml.safe_load(text) | {"model": str(folder.parent / "narrow")}))


ROWS = "copied/rows: the encoded rows are missing or damaged ("
NEW_NAME = "; start the run again under another name"
LOADED = "copied/adapter: the adapter cannot be loaded onto {base}: "
SETTINGS = "; restore it, or give the run another name"
# (file, what happens to it, command, the beginning of the message, its end)
DAMAGED = [
    ("record.json", b"", "train", "copied/record.json: is damaged (Expecting value: line 1 column 1 (char 0))", SETTINGS),
    ("record.json", cut, "report", "copied/record.json: is damaged (", SETTINGS),
    ("record.json", b"[]", "compare", "copied/record.json: is damaged (expected an object {…}, found list)", SETTINGS),
    ("record.json", b'{"settings": 3}', "train", "copied/record.json: is damaged (expected an object {…}, found int)",
     SETTINGS),
    ("record.json", b'{"status": "done"}', "train", "copied holds a checkpoint, and record.json does not say of which "
     "settings; give this run another name, or delete the folder", ""),
    ("record.json", b'{"status": "done"}', "compare", "copied/record.json: does not name the data and the metrics",
     NEW_NAME),
    ("record.json", os.unlink, "train", "copied holds a checkpoint, and record.json does not say of which settings; "
                                        "", ""),
    ("record.json", os.unlink, "ask", "copied: no run here (record.json is missing); name a folder like "
                                      "outputs/quickstart",
     ""),
    ("run.yaml", b"data: [x", "ask", "copied/run.yaml: cannot be read as YAML: ", ""),
    ("run.yaml", b"[]", "evaluate", "copied/run.yaml: expected 'setting: value' lines, found list", ""),
    ("run.yaml", b"data: x\nrnak: 3", "compare", "copied/run.yaml: unknown setting 'rnak'; did you mean 'rank'?", ""),
    ("run.yaml", os.unlink, "ask", "copied/run.yaml: no such file; write the settings of a run there (see README)", ""),
    ("history.jsonl", b'{"update": 1, "loss": 2}\nxx\n', "report",
     "copied/history.jsonl:2: is damaged (Expecting value: line 1 column 1 (char 0)); delete the line and start "
     "again", ""),
    ("history.jsonl", b'{"loss": 2}\n', "report",
     "copied/history.jsonl:1: is damaged ('update' is missing); delete the line and start again", ""),
    ("scores.json", b"{", "report", "copied/scores.json: is damaged (", "); lorakit evaluate writes it again"),
    ("scores.json", b'{"loss": {"before": 1}}', "report",
     "copied/scores.json: is damaged ('after' is missing); lorakit evaluate writes it again", ""),
    ("answers.jsonl", b"3\n", "compare",
     "copied/answers.jsonl:1: is damaged (expected an object {…}, found int); delete the line and start again", ""),
    ("rows/after.json", cut, "compare", "copied/rows/after.json: is damaged (", NEW_NAME),
    ("rows/after.json", b'{"tokens": [], "answers": []}', "compare",
     "copied/rows/after.json: is damaged (it has other rows than answers.jsonl)", NEW_NAME),
    ("rows/meta.json", b"{}", "ask", f"{ROWS}ValueError: 'task' is missing)", NEW_NAME),
    ("rows/test/state.json", b"{}", "evaluate", f"{ROWS}KeyError: '_data_files')", NEW_NAME),
    ("rows/train/data-00000-of-00001.arrow", cut, "evaluate", ROWS, NEW_NAME),
    ("rows", shutil.rmtree, "evaluate", ROWS, NEW_NAME),
    ("adapter", shutil.rmtree, "ask", "copied: has nothing saved yet (status done)", ""),
    ("adapter/adapter_config.json", b"{}", "ask", LOADED + "'peft_type'. Was it made for another base? Else start the "
                                                           "run "
     "again under another name", ""),
    ("adapter/adapter_model.safetensors", cut, "ask", LOADED + "Error while deserializing header: ", ""),
    ("adapter/adapter_model.safetensors", os.unlink, "evaluate", LOADED + "adapter_model.safetensors is missing. ", ""),
    (".", other_base, "ask", "copied/adapter: the adapter cannot be loaded onto {folder}/narrow: Error(s) in loading "
     "state_dict for PeftModelForCausalLM", "Was it made for another base? Else start the run again under another "
                                            "name"),
]


@pytest.mark.parametrize(("file", "damage", "command", "start", "end"), DAMAGED,
                         ids=[f"{c} {f} {i}" for i, (f, _, c, *_) in enumerate(DAMAGED)])
def test_damaged_files_of_a_run_are_named(capsys, quick, finished, copied, settings, base, tmp_path, file, damage, command,
                                          start, end):
    put(copied / file, damage) if isinstance(damage, bytes) else damage(copied / file)
    before = contents(copied.path)
    more = {"ask": ["abc?"], "compare": [finished.path], "evaluate": ["--metrics", "cer"]}.get(command, [])
    message = refusal(capsys, command, settings() if command == "train" else copied.path, *more)
    expected = str(tmp_path / start) if start.startswith("copied") else start
    expected = expected.replace("{base}", base).replace("{folder}", str(tmp_path))
    assert message.startswith(expected) and message.endswith(end), message
    assert contents(copied.path) == before


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, cut], ids=["empty", "zeros", "cut in half"])
def test_a_damaged_checkpoint(capsys, quick, copied, settings, damage):
    """Nothing but the record of the attempt changes, and the adapter of before can still be asked."""
    path = copied / "checkpoint/last.safetensors"
    put(path, damage) if isinstance(damage, bytes) else damage(path)
    notes = ("record.json", "run.yaml", "report.md", "report.html", "loss.png")
    before = contents(copied.path, *notes)
    message = refusal(capsys, "train", settings(max_updates=14))
    assert message.startswith(f"{path}: the checkpoint is damaged (") and message.endswith("; delete it to begin anew")
    assert contents(copied.path, *notes) == before
    assert said(capsys, "ask", copied.path, "abc?", "--max-new-tokens", 1)[0] == 0


def test_a_vocabulary_that_is_too_small(capsys, copied, base, tmp_path):
    config = LlamaConfig(vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=512)
    small = save_base(tmp_path / "small", config)
    (copied / "run.yaml").write_text((copied / "run.yaml").read_text().replace(base, small))
    assert refusal(capsys, "ask", copied.path, "abc?") == (
        f"{small}: the tokenizer has 262 tokens, the model 200; they do not belong together")


# Commands on runs that are not what they need

@pytest.fixture
def stopped(capsys, quick, settings, tmp_path):
    """A run that was stopped after its first update."""
    assert said(capsys, "train", settings(max_minutes=1e-9, max_updates=4))[0] == 0
    return Folder(tmp_path / "copied")


def test_a_run_that_is_not_finished(capsys, stopped, finished):
    before = contents(stopped.path)
    assert refusal(capsys, "ask", stopped.path, "abc?") == f"{stopped.path}: has nothing saved yet (status stopped)"
    assert refusal(capsys, "evaluate", stopped.path, "--metrics", "cer") == (
        f"{stopped.path}: has nothing saved yet (status stopped)")
    assert refusal(capsys, "compare", finished.path, stopped.path) == f"{stopped.path}: has no scores yet (status stopped)"
    assert contents(stopped.path) == before


def test_one_run_and_no_run(capsys, finished, tmp_path):
    assert refusal(capsys, "compare", finished.path) == "compare needs two runs or more"
    for command, *more in (("ask", "abc?"), ("evaluate",), ("report",), ("compare", finished.path)):
        assert refusal(capsys, command, tmp_path, *more) == (
            f"{tmp_path}: no run here (record.json is missing); name a folder like outputs/quickstart")


@pytest.mark.parametrize(("options", "words"), [
    (["--metrics", "bleau"], "there is no 'bleau' in metrics/; did you mean 'bleu'? Present: "),
    (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file (looked from "),
    (["--data", "{rows}"], "{rows}: the run trained on every row of it; these rows prove nothing"),
    (["--data", "{folder}/wrong.jsonl"], "{folder}/wrong.jsonl: the columns words fit no schema ("),
])
def test_scoring_again_what_cannot_be_scored(capsys, copied, rows_file, tmp_path, options, words):
    """A file of training rows alone: the rows that the run was tested on are taken out of it."""
    put(tmp_path / "wrong.jsonl", lines({"words": "a"}))
    tested = {a["prompt"] for a in read_lines(copied / "answers.jsonl")}
    trained = [line for line in Path(rows_file).read_text().splitlines() if json.loads(line)["prompt"] not in tested]
    put(tmp_path / "trained.jsonl", lines(*trained))
    options = [o.replace("{folder}", str(tmp_path)).replace("{rows}", str(tmp_path / "trained.jsonl")) for o in options]
    before = contents(copied.path)
    message = refusal(capsys, "evaluate", copied.path, *options)
    assert message.removeprefix(f"{tmp_path}/").startswith(
        words.replace("{rows}", "trained.jsonl").removeprefix("{folder}/")), message
    assert contents(copied.path) == before


def test_a_question_that_is_too_long(capsys, finished):
    assert refusal(capsys, "ask", finished.path, "a" * 600) == "a prompt has 603 tokens, and the model 512 positions"


# The disk, and other processes

def full(real, name):
    """Stands in for `os.replace`: the disk is full when a file of this name takes its place."""

    def replace(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target)

    return replace


@pytest.mark.parametrize("name", ["record.json", "rows", "before.json", "last.safetensors", "adapter", "scores.json",
                                  "report.html"])
def test_a_full_disk(capsys, quick, settings, finished, tmp_path, monkeypatch, name):
    """Whatever could not be written: with room again the run ends as if nothing had happened."""
    path, folder = settings(), Folder(tmp_path / "copied")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full(os.replace, name))
        message = refusal(capsys, "train", path)
    assert f"/{name}: could not be written: No space left on device" in message
    assert message.endswith("Free some space or name another output_dir, then start again: the run goes on")
    assert not list(folder.path.rglob("*.part*"))
    assert name == "record.json" or folder.record["status"] in ("failed", "done")
    assert said(capsys, "train", path)[0] == 0
    assert folder.record["status"] == "done" and adapter(folder) == adapter(finished)
    assert [u["loss"] for u in folder.history()[0]] == [u["loss"] for u in finished.history()[0]]


def test_a_full_disk_when_the_history_is_written(capsys, quick, settings, finished, tmp_path, monkeypatch):
    calls = []

    def failing(path, *more, **options):
        calls.append(path)
        if Path(path).name == "history.jsonl" and len([c for c in calls if c == path]) == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, *more, **options)

    path, folder = settings(), Folder(tmp_path / "copied")
    with monkeypatch.context() as patch:
        patch.setattr("lorakit.record.open", failing, raising=False)
        assert refusal(capsys, "train", path) == (
            f"{folder.path}/history.jsonl: could not be written: No space left on device; free some space and start "
            "again: "
            "the run goes on from its checkpoint")
    assert said(capsys, "train", path)[0] == 0
    assert adapter(folder) == adapter(finished)
    assert [u["update"] for u in folder.history()[0]] == list(range(1, 13))


def test_a_cache_that_cannot_be_written(capsys, quick, settings, tmp_path, monkeypatch):
    put(tmp_path / "file", "")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "file" / "cache"))
    assert refusal(capsys, "train", settings()) == (
        f"{tmp_path}/file/cache: the cache cannot be written (Not a directory); name another folder in the environment "
        "variable LORAKIT_CACHE")
    assert (tmp_path / "file").read_bytes() == b""


def test_an_output_folder_that_cannot_be_written(capsys, settings, tmp_path, monkeypatch):
    put(tmp_path / "file", "mine")
    assert refusal(capsys, "train", settings(output_dir=str(tmp_path / "file"))) == (
        f"{tmp_path}/file/copied: cannot be written (Not a directory); name another output_dir")
    assert (tmp_path / "file").read_text() == "mine"

    def read_only(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = settings(output_dir=str(tmp_path / "new"))
    monkeypatch.setattr(Path, "mkdir", read_only)
    assert refusal(capsys, "train", path) == (
        f"{tmp_path}/new/copied: cannot be written (Read-only file system); name another output_dir")


def test_two_runs_into_one_folder(capsys, copied, settings):
    before = contents(copied.path)
    with copied.locked():
        assert refusal(capsys, "train", settings(max_updates=14)) == (
            f"{copied.path}: another run is writing here; give this one another name, or wait, or stop that one")
    assert contents(copied.path) == before


# Training

def test_a_rate_that_is_far_too_high(capsys, quick, settings, tmp_path):
    message = refusal(capsys, "train", settings(learning_rate=1e30, schedule="constant", warmup_ratio=0.0))
    assert message.startswith("the loss became nan at update 2")
    assert message.endswith("; lower learning_rate (1e+30 now), or use precision=fp32 or bf16")
    folder = Folder(tmp_path / "copied")
    assert (folder.record["status"], folder.record["error"]) == ("failed", message)
    assert [u["update"] for u in folder.history()[0]] == [1] and message in (folder / "report.md").read_text()
    assert not (folder / "adapter").exists()


def test_a_loss_that_is_no_number_later_on(capsys, quick, settings, finished, tmp_path, monkeypatch):
    """At update 6 of 12, with checkpoints after 4 and 8: the run goes on from update 4 once the cause is gone."""
    from lorakit.engines.torch import TorchEngine

    real, calls = TorchEngine.backward, []

    def backward(self, batch):
        loss, count = real(self, batch)
        calls.append(batch)
        return (math.nan if len(calls) == 6 else loss), count

    path, folder = settings(), Folder(tmp_path / "copied")
    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "backward", backward)
        assert refusal(capsys, "train", path).startswith("the loss became nan at update 6")
    assert checkpoint.read(folder / "checkpoint/last.safetensors")[1]["state"]["update"] == 4
    assert said(capsys, "train", path)[0] == 0
    assert adapter(folder) == adapter(finished)
    assert [u["update"] for u in folder.history()[0]] == list(range(1, 13))


def test_bad_rows_are_left_out_of_a_run_and_named(capsys, quick, settings, rows_file, tmp_path):
    bad = ['{"prompt": "a?", "completion": null}', '{"prompt": }', "[1]", '{"prompt": "\\ud800?", "completion": "b"}',
           json.dumps({"prompt": "x" * 200, "completion": "b"}), Path(rows_file).read_text().splitlines()[0]]
    put(tmp_path / "rows.jsonl", Path(rows_file).read_text() + lines(*bad))
    assert said(capsys, "train", settings(data=str(tmp_path / "rows.jsonl"), max_updates=2))[0] == 0
    folder = Folder(tmp_path / "copied")
    assert folder.record["status"] == "done"
    assert sorted((r["row"], r["file"], r["reason"]) for r in read_lines(folder / "rejected.jsonl")) == [
        (81, "rows.jsonl", "'completion' is null"),
        (82, "rows.jsonl", "broken JSON: Expecting value at column 12"),
        (83, "rows.jsonl", "expected an object {…}, found list"),
        (84, "rows.jsonl", "'prompt' holds half a character (a lone surrogate)"),
        (85, "rows.jsonl", "no answer token within max_length=128 (the row has 205 tokens)"),
        (86, "rows.jsonl", "repeats rows.jsonl:1")]


def test_notebooks_that_are_none(tmp_path):
    pytest.importorskip("papermill")
    from lorakit.notebook import execute

    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(LorakitError, match="bad.ipynb: cannot be read as a notebook"):
        execute(tmp_path / "bad.ipynb", {})
    real = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
    with pytest.raises(LorakitError, match="-p rank \\[: the value cannot be read as YAML"):
        execute(real, {"rank": "["}, tmp_path)

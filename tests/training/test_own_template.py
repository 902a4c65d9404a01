"""A chat template of the user's own is what training, generation, the adapter and its exports write."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.results.open_run import open_run

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    pairs = ({"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(24))
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return str(path)


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.mark.slow
def test_trained_asked_and_saved_with_it(tmp_path, base, rows, template):
    run = lorakit.Run(
        name="own",
        data=rows,
        model=base,
        chat_template=str(template),
        output_dir=str(tmp_path / "outputs"),
        max_updates=2,
        max_length=128,
        test_fraction=0.1,
    )
    prepared = lorakit.prepare(run)
    row = prepared.rows["train"][0]
    words = prepared.tokenizer.decode(row["ids"])
    assert words.startswith("<user>What is ") and "<assistant>It is " in words
    assert prepared.tokenizer.decode(row["ids"][row["targets"]]).startswith("It is ")
    plain = lorakit.prepare(run.with_(chat_template=None))
    assert plain.tokenizer.chat_template != TEMPLATE and plain.path != prepared.path

    folder = lorakit.finetune(run)
    saved = tmp_path / "outputs" / "own" / "adapter"
    assert AutoTokenizer.from_pretrained(saved).chat_template == TEMPLATE
    template.unlink()
    shutil.move(tmp_path / "outputs" / "own", tmp_path / "moved")
    opened = open_run(tmp_path / "moved")
    assert opened.tokenizer.chat_template == TEMPLATE
    engine = opened.engine()
    asked = opened.task.ask("What is 7?", engine.tokenizer)
    assert engine.tokenizer.decode(asked["ids"]).endswith(
        "What is 7?" + engine.tokenizer.eos_token + "<assistant>"
    )
    assert folder


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("", "it is empty"),
        ("{% for m in messages %}", "line 1"),
    ],
)
def test_a_template_that_cannot_be_used(tmp_path, base, rows, content, words):
    path = tmp_path / "bad.jinja"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LorakitError, match=words) as error:
        lorakit.prepare(lorakit.Run(data=rows, model=base, chat_template=str(path)))
    assert error.value.setting == "chat_template"


def test_a_changed_template_is_read_anew(base, rows, template):
    run = lorakit.Run(data=rows, model=base, chat_template=str(template))
    before = lorakit.prepare(run).path
    template.write_text(TEMPLATE.replace("<assistant>", "<answer>"))
    assert lorakit.prepare(run).path != before


def test_a_template_without_effect_is_refused(tmp_path, base, template):
    path = tmp_path / "stories.txt"
    path.write_text("".join(f"The river number {i} rose in the night.\n" for i in range(30)))
    run = lorakit.Run(data=str(path), model=base, chat_template=str(template), max_updates=1)
    with pytest.raises(LorakitError, match="task=text uses no chat template"):
        lorakit.plan(run) if hasattr(lorakit, "plan") else lorakit.finetune(run)


def test_a_template_that_refuses_a_system_turn_says_so_in_check_and_in_training(tmp_path, base):
    """Gemma's does. The reason is the template's own, and `check` gives the same as a run."""
    path = tmp_path / "gemma.jinja"
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    path.write_text(refusing + TEMPLATE)
    data = tmp_path / "rows.jsonl"
    turns = [("system", "Be brief."), ("user", "Safe?"), ("assistant", "No.")]
    rows = ({"messages": [{"role": r, "content": f"{c} {i}"} for r, c in turns]} for i in range(20))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = lorakit.Run(data=str(data), model=base, chat_template=str(path))
    reason = "the chat template refuses it: System role not supported"
    with pytest.raises(LorakitError, match=reason):
        lorakit.prepare(run)
    found = lorakit.check(run)
    assert not found.usable and reason in str(found)

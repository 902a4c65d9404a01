"""Beyond chat: what is trained of a picture's or a recording's row, and that heads, towers and answers hold."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
from helpers.pictures import CLASSES, SETTINGS, trained
from PIL import Image

import lorakit
from lorakit.common import registry
from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Example
from lorakit.machine import hardware
from lorakit.models import base_model
from lorakit.planning import choose
from lorakit.results import report
from lorakit.tasks import caption, chat_images, classify_image, classify_text, rows, transcribe
from lorakit.tasks.batches import Batches, collate, in_order
from lorakit.tasks.objectives import labels
from lorakit.tasks.rows import Rows

SEEING = ("smolvlm-256m", "qwen2.5-vl-3b", "gemma-3-4b", "gemma-3n-e2b")


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Two words as tones, by four speakers."""
    folder, rng = tmp_path_factory.mktemp("spoken"), np.random.default_rng(0)
    for word, hertz in (("up", 300), ("down", 900)):
        for speaker in range(4):
            for take in range(5):
                wave = np.sin(2 * np.pi * hertz * (1 + speaker / 20) * np.arange(4000) / 8000)
                sound = 0.4 * wave + rng.normal(0, 0.02, 4000)
                soundfile.write(
                    folder / f"{word}_{speaker}_{take}.wav", sound.astype(np.float32), 8000
                )
    return str(folder)


def picture(path, colour=(1, 2, 3), size=(48, 40)):
    Image.new("RGB", size, colour).save(path)
    return {"path": str(path), "name": path.name, "sha256": "", "look": 0}


def shown(tmp_path, **fields):
    """An example of one picture."""
    return Example({"media": [picture(tmp_path / "a.png")], "question": "", **fields}, "f", 1)


# What is trained


def test_a_captions_row(made, tmp_path):
    tokenizer, processor, _ = base_model.reader(made("blip-base"))
    (row,) = caption.encode(shown(tmp_path, text="a leaf"), processor, 64)
    words = tokenizer("a leaf", add_special_tokens=False)["input_ids"]
    assert row["ids"] == [processor.start_id, *words, tokenizer.sep_token_id]
    assert row["targets"] == [False] + [True] * (len(words) + 1) and row["answer_start"] == 1
    assert caption.stop_ids([row], tokenizer) == [tokenizer.sep_token_id]


def test_a_recordings_row(made, tmp_path):
    tokenizer, processor, _ = base_model.reader(made("whisper-small"))
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16000) / 9).astype(np.float32) / 2, 16000)
    example = Example(
        {"media": [{"path": str(tmp_path / "a.wav"), "name": "a.wav"}], "text": "up  we go"}, "f", 1
    )
    (row,) = transcribe.encode(example, processor, 64, language="sw")
    names = tokenizer.convert_ids_to_tokens(row["ids"])
    assert names[:4] == ["<|startoftranscript|>", "<|sw|>", "<|transcribe|>", "<|notimestamps|>"]
    assert names[-1] == "<|endoftext|>" and tokenizer.decode(row["ids"][4:-1]) == " up we go"
    assert row["targets"] == [False] * 4 + [True] * (len(names) - 4) and row["answer_start"] == 4
    assert transcribe.inputs(row, processor, None)["input_features"].shape == (1, 40, 500)
    with pytest.raises(BadRow, match="no such language"):
        transcribe.encode(example, processor, 64, language="xx")
    soundfile.write(
        tmp_path / "a.wav", np.sin(np.arange(6 * 16000) / 9).astype(np.float32) / 2, 16000
    )
    with pytest.raises(BadRow, match="lasts 6.0 s, and the model hears 5 s"):
        transcribe.encode(example, processor, 64)


@pytest.mark.parametrize("name", SEEING)
def test_of_a_conversation_about_pictures_the_answers_alone_are_trained(made, tmp_path, name):
    tokenizer, processor, _ = base_model.reader(made(name))
    media = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png", (9, 9, 9))]
    turns = [
        {"role": "user", "content": "What is this?", "images": 1},
        {"role": "assistant", "content": "Rust."},
        {"role": "user", "content": "And this?", "images": 1},
        {"role": "assistant", "content": "Spot."},
    ]
    found = chat_images.encode(Example({"media": media, "turns": turns}, "f", 1), processor, 4096)
    picture_token = getattr(tokenizer, "image_token_id", None) or processor.image_token_id
    for row in found:
        trained = [i for i, on in zip(row["ids"], row["targets"], strict=True) if on]
        assert picture_token not in trained and picture_token in row["ids"]
        said = tokenizer.decode(trained, skip_special_tokens=False)
        assert "What is this?" not in said and "And this?" not in said
        assert row["ids"][-1] in chat_images.stop_ids([row], tokenizer)
    answers = "".join(
        tokenizer.decode([i for i, on in zip(r["ids"], r["targets"], strict=True) if on])
        for r in found
    )
    assert "Rust." in answers and "Spot." in answers
    assert len(found[-1]["media"]) == 2
    # As many tokens stand for a picture as the model's own processor says.
    words = tokenizer.apply_chat_template(
        chat_images.turns_of({"turns": turns}, "")[:1], tokenize=False, add_generation_prompt=True
    )
    images = [Image.open(tmp_path / "a.png")]
    expected = processor(text=[words], images=[images], add_special_tokens=False)["input_ids"][0]
    first = found[0]["targets"].index(True)
    assert found[0]["ids"][:first] == list(expected)


def test_a_picture_that_max_length_cuts_through(made, tmp_path):
    _, processor, _ = base_model.reader(made("qwen2.5-vl-3b"))
    example = shown(tmp_path, text="Rust.")
    (whole,) = chat_images.encode(example, processor, 4096, "What?")
    with pytest.raises(BadRow, match="no answer token within max_length"):
        chat_images.encode(example, processor, whole["answer_start"], "What?")


@pytest.mark.parametrize("task, name", [(chat_images, "smolvlm-256m"), (caption, "blip-base")])
def test_the_answer_is_no_part_of_what_is_asked(made, tmp_path, task, name):
    processor = base_model.reader(made(name))[1]
    one, two = (
        task.encode(shown(tmp_path, text=words), processor, 512)[0]
        for words in ("Rust.", "No, it is blight!")
    )
    start = one["answer_start"]
    assert (
        start == two["answer_start"]
        and one["ids"][:start] == two["ids"][:start]
        and one["media"] == two["media"]
    )
    given = [task.inputs(row, processor, None) for row in (one, two)]
    assert given[0].keys() == given[1].keys()
    assert all(np.array_equal(given[0][key], given[1][key]) for key in given[0])


def test_a_class_is_no_part_of_what_the_model_sees(made, tmp_path):
    tokenizer = base_model.reader(made("distilbert"))[0]
    turn = {"role": "user", "content": "no water"}
    rows_ = [
        Example({"messages": [turn, {"role": "assistant", "content": c}], "label": c}, "f", 1)
        for c in ("need", "news")
    ]
    one, two = (classify_text.encode(row, tokenizer, 64)[0] for row in rows_)
    assert (
        one["ids"] == two["ids"] == tokenizer("no water")["input_ids"]
        and one["reference"] == "need"
    )
    processor = base_model.reader(made("vit-base"))[1]
    seen = [
        classify_image.encode(shown(tmp_path, label=c), processor, 64)[0] for c in ("rust", "spot")
    ]
    assert seen[0]["media"] == seen[1]["media"] and seen[0]["ids"] == []


def test_a_picture_reaches_the_model_as_its_processor_makes_it(made, tmp_path):
    processor = base_model.reader(made("vit-base"))[1]
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    rough.save(tmp_path / "a.png")
    example = Example(
        {"media": [{"path": str(tmp_path / "a.png"), "name": "a"}], "label": "x"}, "f", 1
    )
    (row,) = classify_image.encode(example, processor, 64)
    expected = np.asarray(processor(images=rough, return_tensors="np")["pixel_values"])
    assert np.array_equal(classify_image.inputs(row, processor, None)["pixel_values"], expected)
    trained = [
        classify_image.inputs(row, processor, np.random.default_rng(s))["pixel_values"]
        for s in (1, 1, 2)
    ]
    assert np.array_equal(trained[0], trained[1]) and not np.array_equal(trained[0], trained[2])
    assert not np.array_equal(trained[0], expected)
    plain = row | {"augment": False}
    assert np.array_equal(
        classify_image.inputs(plain, processor, np.random.default_rng(1))["pixel_values"], expected
    )


# Batches


class Made(Rows):
    """Rows that a random number generator changes."""

    def __init__(self, n):
        self.rows = [{"ids": [], "label": i % 2} for i in range(n)]
        self.documents = labels.documents

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    @staticmethod
    def inputs(row, random):
        return {"pixel_values": np.full((1, 2), 0.0 if random is None else random.random())}


def test_a_row_looks_the_same_in_whatever_company():
    settings = {
        "global_batch_size": 4,
        "micro_batch_tokens": 100,
        "packing": False,
        "seed": 3,
        "epochs": 2,
    }
    seen = []
    for size, processes in ((4, 1), (1, 1), (2, 2)):
        found = {}
        for rank in range(processes):
            made = Batches(
                Made(8),
                np.ones(8, int),
                micro_batch_size=size,
                rank=rank,
                processes=processes,
                **settings,
            )
            for update in range(len(made)):
                for batch in made[update]:
                    assert not batch.idle
                    found |= {
                        (update, int(i)): m["pixel_values"][0, 0]
                        for i, m in zip(batch.rows, batch.media)
                    }
        seen.append(found)
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 16 and len(set(seen[0].values())) == 16
    batch = collate(Made(3).rows, range(3), inputs=Made.inputs, documents=labels.documents)
    assert (
        batch.count == 3
        and batch.values["label"].tolist() == [0, 1, 0]
        and batch.media[0]["pixel_values"][0, 0] == 0.0
    )


def test_while_an_update_is_used_a_thread_makes_the_next():
    """Whatever is asked for next, it is what it would have been; what goes wrong in the thread is raised here."""
    makers = []

    class Watched(Made):
        @staticmethod
        def inputs(row, random):
            makers.append(threading.current_thread() is threading.main_thread())
            return Made.inputs(row, random)

    settings = {
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "micro_batch_tokens": 100,
        "packing": False,
        "seed": 3,
        "epochs": 2,
    }
    made = Batches(Watched(8), np.ones(8, int), **settings)
    first = made[0]
    made._get.next[1].result()
    assert makers == [True] * 4 + [False] * 4 and sum(b.count for b in first) == 4
    for update in (1, 3, 2):
        alone = Batches(Made(8), np.ones(8, int), **settings)._made(update)
        for one, two in zip(made[update], alone, strict=True):
            assert one.rows.tolist() == two.rows.tolist() and one.seed == two.seed
            assert [m["pixel_values"].tolist() for m in one.media] == [
                m["pixel_values"].tolist() for m in two.media
            ]
    assert [b.rows.tolist() for b in in_order(Watched(5), np.ones(5, int), 2, 100, False)] == [
        [0, 1],
        [2, 3],
        [4],
    ]

    class Broken(Made):
        @staticmethod
        def inputs(row, random):
            if threading.current_thread() is not threading.main_thread():
                raise BadRow("a.png: cut")
            return {}

    made = Batches(Broken(8), np.ones(8, int), **settings)
    assert len(made[0]) == 2
    with pytest.raises(BadRow, match="a.png: cut"):
        made[1]


def test_bytes_keep_the_zeros_at_their_end():
    task = type(
        "task",
        (),
        {
            "COLUMNS": {"ids": ["int32"], "cut": "int32", "media": ["binary"]},
            "MEDIUM": "sound",
            "OBJECTIVE": "next_token",
            "encode": staticmethod(lambda *_: [{"ids": [1], "cut": 0, "media": [b"a\0\0", b"\0"]}]),
            "guard": staticmethod(lambda *_: None),
            "complete": None,
        },
    )
    encoded, _, _ = rows.encode({"train": [Example({}, "f", 1)]}, task, None, 8)
    assert encoded["train"][0]["media"] == [b"a\0\0", b"\0"]


# Whole runs


@pytest.mark.slow
def test_pictures_from_the_folder_to_the_evidence(made, leaves, tmp_path):
    folder = trained(
        "leaves", made("vit-base"), leaves, tmp_path, max_updates=40, test_fraction=0.3
    )
    record, scores = folder.record, folder.scores
    assert record["status"] == "done" and record["data"]["task"] == "classify_image"
    assert scores["loss"]["after"] < scores["loss"]["before"] and scores["loss"]["interval"][1] < 0
    assert scores["accuracy"]["after"] > 0.7 and set(scores) == {
        "loss",
        "accuracy",
        "f1",
        "roc_auc",
    }
    report = (folder / "report.md").read_text()
    assert (
        "confusion.png" in report
        and "no group_by: shots of one leaf" in report
        and "nats per" not in report
    )
    assert "rows trained" in report and (folder / "confusion.png").stat().st_size > 5000
    path = f"{leaves}/rust/0.png"
    answer = lorakit.ask(folder.path, path)[0]
    assert answer.split(" ")[0] in CLASSES and answer.endswith("%)")
    # The head, reloaded by plain PEFT in a fresh process, gives the same logits.
    engine, _, meta, _ = lorakit.tuned(folder.path)
    row = classify_image.ask(path, engine.processor) | {"label": 0}
    here = engine.predict(
        collate([row], [0], inputs=lambda r, _: classify_image.inputs(r, engine.processor, None))
    )
    code = f"""
import json, torch
from peft import PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
torch.manual_seed(0)
base = AutoModelForImageClassification.from_pretrained({made("vit-base")!r}, num_labels=3, ignore_mismatched_sizes=True)
model = PeftModel.from_pretrained(base, {str(folder / "adapter")!r}).eval()
given = AutoImageProcessor.from_pretrained({str(folder / "adapter")!r})(Image.open({path!r}), return_tensors="pt")
with torch.no_grad():
    print(json.dumps(model(**given).logits.softmax(-1)[0].tolist()))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert np.abs(np.array(json.loads(child.stdout.splitlines()[-1])) - here[0, 3:]).max() < 1e-6
    assert meta["classes"] == sorted(CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distilbert", "opt-125m"])
def test_texts_and_their_classes(made, quick, tmp_path, name, capfd):
    rng, kinds = np.random.default_rng(0), {"need": "water food help", "news": "sun wind rain"}
    lines = [
        {"text": f"{rng.choice(words.split())} {i}", "label": kind}
        for i in range(40)
        for kind, words in kinds.items()
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = trained(
        "kinds",
        made(name),
        str(tmp_path / "rows.jsonl"),
        tmp_path,
        task="classify_text",
        max_updates=45,
        max_length=32,
        test_fraction=0.25,
        rank=4,
    )
    scores, proof = folder.scores, folder.record["proof"]
    assert scores["loss"]["after"] < scores["loss"]["before"] and scores["accuracy"]["after"] > 0.8
    assert "log-probabilities of classes (largest difference 0.0e+00" in proof["reloaded"]
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert {a["after"] for a in answers} <= set(kinds) and len(answers) == scores["accuracy"][
        "rows"
    ]
    capfd.readouterr()
    engine, tokenizer, _, _ = lorakit.tuned(folder.path)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
    # Alone or beside a longer row, a text has the same class: padding counts for nothing.
    asked = [
        classify_text.ask(q, tokenizer) | {"label": 0}
        for q in ("food 3", "rain and wind and sun all day long")
    ]
    both = engine.predict(collate(asked, [0, 1]))[:, 3:]
    alone = [engine.predict(collate([row], [0]))[0, 3:] for row in asked]
    assert np.abs(both - np.array(alone)).max() < 1e-5


def test_of_a_classifier_few_rows_of_many_classes_are_drawn_too(tmp_path):
    lines = [{"reference": kind, "before": "x", "after": kind} for kind in "abcda"]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = []
    for task in ("chat", "classify_text"):
        lorakit.Folder(tmp_path).note(data={"task": task})
        found.append(report.confusion(tmp_path))
    assert found[0] is None
    for axes in found[
        1
    ].axes:  # the same columns on both sides, a class that is nowhere right among them
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c", "d", "x"]


@pytest.mark.slow
def test_recordings_from_the_folder_to_the_evidence(made, spoken, quick, tmp_path):
    names = {"folder": {"options": {"sounds": {"names": "{word}_{speaker}_{take}"}}}}
    folder = trained(
        "spoken",
        made("whisper-small"),
        spoken,
        tmp_path,
        columns={"text": "{word}"},
        format=names,
        group_by="speaker",
        max_updates=20,
        max_length=64,
    )
    assert folder.record["data"]["task"] == "transcribe" and {"wer", "cer"} <= set(folder.scores)
    assert folder.scores["loss"]["after"] < folder.scores["loss"]["before"]
    test = {
        json.loads(line)["prompt"].split("_")[1]
        for line in (folder / "answers.jsonl").read_text().splitlines()
    }
    assert (
        len(test) == 1
    )  # one speaker, whom training never heard: one piece of evidence, which has no interval
    assert (
        folder.scores["loss"]["interval"] == [None, None] and folder.scores["loss"]["groups"] == 1
    )
    assert "Too few test rows to tell" in (folder / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEEING, "blip-base"])
def test_a_model_that_sees_learns_and_answers(made, leaves, quick, tmp_path, name):
    asked = {} if name == "blip-base" else {"question": "Which?"}  # a caption answers none
    folder = trained(name, made(name), leaves, tmp_path, max_rows=20, **asked)
    task = "caption" if name == "blip-base" else "chat_images"
    assert folder.record["status"] == "done" and folder.record["data"]["task"] == task
    assert folder.scores["loss"]["after"] < folder.scores["loss"]["before"]
    weights = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert weights["task_type"] in (None, "CAUSAL_LM")
    assert isinstance(lorakit.ask(folder.path, f"{leaves}/rust/0.png")[0], str)


@pytest.mark.parametrize("name", [*SEEING, "blip-base"])
def test_towers_stay_frozen_and_in_evaluation(made, leaves, tmp_path, name):
    run = lorakit.Run(
        model=made(name),
        data=leaves,
        task="caption" if name == "blip-base" else "chat_images",
        target_modules="all-linear",
        **SETTINGS | {"max_length": 128},
    )
    engine = registry.load("engines", "torch").load(choose.resolve(run, hardware.facts("."))[0])
    seeing = {type(tower).__name__ for tower in engine.frozen_encoders}
    assert seeing and not [
        n
        for n in engine.trained
        if any(part in n for part in ("vision_tower", "vision_model", "visual", "audio_tower"))
    ]
    some = [{"ids": [5, 6, 7], "targets": [False, True, True]}]
    if name == "blip-base":
        prepared = lorakit.prepare(run)
        some, inputs = [prepared.rows["train"][0]], prepared.rows["train"].inputs
        engine.backward(collate(some, [0], inputs=inputs))
    else:
        engine.backward(collate(some, [0]))
    assert engine.model.training and not any(
        part.training for tower in engine.frozen_encoders for part in tower.modules()
    )


@pytest.mark.parametrize("name, task", [("swin-tiny", "classify_image"), ("blip-base", "caption")])
def test_recomputed_activations_give_the_same_gradients(made, leaves, name, task):
    found = []
    for again in (False, True):
        run = lorakit.Run(
            model=made(name),
            data=leaves,
            task=task,
            augment=False,
            gradient_checkpointing=again,
            **SETTINGS,
        )
        prepared = lorakit.prepare(run)
        engine = registry.load("engines", "torch").load(
            choose.resolve(run, hardware.facts("."))[0], classes=prepared.meta["classes"]
        )
        train = prepared.rows["train"]
        some = [train[i] for i in range(3)]
        engine.backward(collate(some, range(3), inputs=train.inputs, documents=train.documents))
        found.append(
            {n: p.grad.numpy().copy() for n, p in engine.trained.items() if p.grad is not None}
        )
    assert found[0] and all(np.array_equal(found[0][n], found[1][n]) for n in found[0])


@pytest.mark.parametrize(
    "name, task, row",
    [
        ("vit-base", "classify_image", 16),
        ("blip-base", "caption", 64),
        ("whisper-small", "transcribe", 250 + 128),
        ("gemma-3n-e2b", "chat_images", 0),
        ("distilbert", "classify_text", 0),
    ],
)
def test_memory_is_counted_by_going_through_the_model(made, name, task, row):
    """For four rows twice what two take, and less where activations are recomputed: no rough formula."""
    engine = registry.load("engines", "torch")
    run = lorakit.Run(
        model=made(name),
        data="-",
        task=task,
        gradient_checkpointing=False,
        **SETTINGS | {"max_length": 128},
    )
    assert engine.row_positions(run) == row
    two, four = (engine.working_bytes(run, n * (row or 128)) for n in (2, 4))
    assert 1.6 < four / two < 2.4
    assert engine.working_bytes(run.with_(gradient_checkpointing=True), 4 * (row or 128)) < four


def test_padded_together_or_alone_is_one_loss(made, leaves, tmp_path):
    """Pictures of several sizes, which take different numbers of tokens, in one batch."""
    for i, size in enumerate(((56, 56), (112, 84), (84, 112))):
        picture(tmp_path / f"{i}.png", (i, 90, 200), size)
    run = lorakit.Run(model=made("qwen2.5-vl-3b"), data=leaves, task="chat_images", **SETTINGS)
    engine = registry.load("engines", "torch").load(choose.resolve(run, hardware.facts("."))[0])
    examples = [
        Example(
            {
                "media": [{"path": str(tmp_path / f"{i}.png"), "name": ""}],
                "question": "What?",
                "text": "Rust" * (i + 1),
            },
            "f",
            1,
        )
        for i in range(3)
    ]
    given = [chat_images.encode(example, engine.processor, 512)[0] for example in examples]
    assert len({row["ids"].count(engine.processor.image_token_id) for row in given}) > 1

    def inputs(row, _):
        return chat_images.inputs(row, engine.processor, None)

    together = engine.predict(collate(given, range(3), inputs=inputs))
    alone = np.concatenate([engine.predict(collate([row], [0], inputs=inputs)) for row in given])
    assert np.allclose(together, alone, atol=1e-4)
    prompts = [row["ids"][: row["answer_start"]] for row in given]
    answers = engine.generate(prompts, 5, [], [inputs(row, None) for row in given])
    assert answers == [
        engine.generate([p], 5, [], [inputs(r, None)])[0]
        for p, r in zip(prompts, given, strict=True)
    ]


def test_check_counts_the_tokens_of_the_runs_own_question(made, leaves):
    """A question of other words, a row of other length: `check` and the run agree about both."""
    found = []
    for question in ("What?", "Which of the three diseases does this leaf show?"):
        run = lorakit.Run(
            model=made("smolvlm-256m"),
            data=leaves,
            question=question,
            test_fraction=0,
            validation_fraction=0,
        )
        found.append(lorakit.check(run).checks["lengths"].facts()["longest"])
        assert found[-1] == max(lorakit.prepare(run).rows["train"].lengths)
    assert found[1] > found[0] + 4


def test_what_does_not_go_together(made, leaves, rows_file, tmp_path, request):
    with pytest.raises(
        LorakitError,
        match="these rows and model=.* do not go together: they are for caption or chat",
    ):
        trained("a", request.getfixturevalue("base"), leaves, tmp_path)
    with pytest.raises(
        LorakitError,
        match="task='chat' do not go together: transformers' vit serves classify_image",
    ):
        trained("b", made("vit-base"), rows_file, tmp_path, task="chat")


def test_a_picture_that_changes_behind_its_table(made, tmp_path):
    lines, rng = [], np.random.default_rng(0)

    def rough(name):
        cells = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
        cells.resize((40, 40), Image.Resampling.BICUBIC).save(tmp_path / name)

    for i in range(12):
        rough(f"{i}.png")
        lines.append(f"{i}.png,{'ab'[i % 2]},{i // 2}\n")
    (tmp_path / "rows.csv").write_text("image,label,leaf\n" + "".join(lines))
    run = lorakit.Run(
        model=made("vit-base"), data=str(tmp_path / "rows.csv"), group_by="leaf", test_fraction=0.4
    )
    one = lorakit.prepare(run)
    assert lorakit.prepare(run).report.sha256 == one.report.sha256
    # Two shots of a leaf are one piece of evidence.
    assert len(set(one.rows["test"].sources)) == len(one.rows["test"]) / 2
    name = one.rows["train"][0]["prompt"]
    rough(name)
    two = lorakit.prepare(run)
    assert two.report.sha256 != one.report.sha256
    changed = next(row for part in two.rows.values() for row in part if row["prompt"] == name)
    assert changed["media"] != one.rows["train"][0]["media"]


@pytest.mark.slow
def test_folds_score_every_row_once(made, leaves, quick, tmp_path):
    folder = trained("cv", made("vit-base"), leaves, tmp_path, folds=3, max_updates=3)
    scores = folder.scores
    assert scores["accuracy"]["rows"] == 48 and [
        f["rows"] for f in scores["accuracy"]["folds"]
    ] == [16, 16, 16]
    pooled = np.mean([f["after"] for f in scores["accuracy"]["folds"]])
    assert scores["accuracy"]["after"] == pytest.approx(pooled)
    where = [
        json.loads(line)["where"] for line in (folder / "answers.jsonl").read_text().splitlines()
    ]
    assert len(where) == len(set(where)) == 48
    assert "in 3 folds:" in (folder / "report.md").read_text() and (folder / "adapter").is_dir()
    times = [(folder.path / "folds" / f"fold-{i}" / "adapter").stat().st_mtime for i in (1, 2, 3)]
    assert (
        trained("cv", made("vit-base"), leaves, tmp_path, folds=3, max_updates=3).scores == scores
    )
    assert times == [
        (folder.path / "folds" / f"fold-{i}" / "adapter").stat().st_mtime for i in (1, 2, 3)
    ]
    with pytest.raises(LorakitError, match="folds=3 and test_data="):
        lorakit.Run(data=leaves, folds=3, test_data=leaves)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, task, data",
    [
        ("vit-base", "classify_image", "leaves"),
        ("whisper-small", "transcribe", "spoken"),
        ("smolvlm-256m", "chat_images", "leaves"),
    ],
)
def test_one_curve_in_pieces_of_any_size(made, quick, request, tmp_path, name, task, data):
    """The same rows in other micro-batches: augmentation and padding change nothing."""
    settings = (
        {
            "columns": {"text": "{word}"},
            "format": {"folder": {"options": {"sounds": {"names": "{word}_{speaker}_{take}"}}}},
        }
        if data == "spoken"
        else {}
    )
    losses = []
    for size in (8, 3):
        folder = trained(
            f"{size}",
            made(name),
            request.getfixturevalue(data),
            tmp_path,
            task=task,
            test_fraction=0,
            micro_batch_size=size,
            max_rows=24,
            max_updates=4,
            learning_rate=1e-3,
            **settings,
        )
        losses.append([u["loss"] for u in folder.history()[0]])
    assert len(losses[0]) == 4 and np.allclose(*losses, rtol=0, atol=2e-5)

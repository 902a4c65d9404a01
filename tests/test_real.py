"""A real pretrained model on real rows: what the numbers should be, where the public files are at hand."""

import json
import shutil
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

import lorakit
from lorakit.cli import main
from lorakit.notebook.rehearse import stand_in
from lorakit.runs.folder import read_lines

BASE = {
    "model": "stories260K/hf",
    "quantization": "none",
    "precision": "fp32",
    "rank": 8,
    "alpha": 16,
    "learning_rate": 1e-2,
    "schedule": "linear",
    "target_modules": [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    ],
}


def settings(real_data, folder, **changes):
    """A run of the real model on a real file, both named from the folder of real data."""
    given = {**BASE, "output_dir": str(folder), **changes}
    return lorakit.Run(**given | {name: str(real_data / given[name]) for name in ("model", "data")})


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_real_model_gets_better_on_rows_it_never_saw(real_data, quick, tmp_path, quantization):
    """stories260K on Alpaca's rows, 150 updates of 8: 4.70 to 2.43 nats per target token (NF4 4.79 to 2.44).

    Of other seeds, which split otherwise: 4.49 to 2.25, 4.51 to 2.23.
    """
    folder = lorakit.finetune(
        settings(
            real_data,
            tmp_path,
            data="instruction_small/instruction-data.json",
            max_length=512,
            max_updates=150,
            quantization=quantization,
            max_new_tokens=24,
            metrics=["token_accuracy"],
        )
    )
    score = folder.scores["loss"]
    assert folder.record["status"] == "done"
    assert score["rows"] >= 100
    assert score["before"] == pytest.approx(4.8, abs=0.3)
    assert score["after"] <= 2.5
    assert score["interval"][1] < -1.9
    assert folder.scores["token_accuracy"]["interval"][0] > 0
    files = {a["where"].rsplit(":", 1)[0] for a in read_lines(folder / "answers.jsonl")}
    assert files == {"instruction-data.json"}


# Files as they were published: settings; what `lorakit check` finds, and whether it is content; what a run leaves out,
# by how the reasons begin; rows of each set, and of each class; loss before, and the most that is let pass after it
# and as the upper end of the difference's interval. Behind these two what was measured with the seeds 0, 1 and 2.
FILES = {
    "gsm8k": {
        "settings": {
            "data": "gsm8k/train_first3000.jsonl",
            "max_length": 384,
            "global_batch_size": 4,
            "validation_fraction": 0.02,
            "test_fraction": 0.03,
            "metrics": [{"exact_match": {"pattern": r"####\s*(-?[\d.,]+)"}}],
        },
        "found": ("jsonl", "prompt_completion", 3000, 3000, False),
        "left out": {"no answer token within max_length=384": 9},
        "rows": {"train": 2841, "validation": 60, "test": 90},
        "scores": {"exact_match"},
        "before": 7.10,
        "after": 2.8,
        "interval": -3.8,
    },  # 2.48 2.54 2.48, -4.42 -4.12 -4.27
    "disaster_response": {
        "settings": {
            "data": "disaster_response/disaster_response_validation.csv",
            "max_length": 256,
            "columns": {"text": "message", "label": "genre"},
            "validation_fraction": 0.02,
            "test_fraction": 0.04,
            "metrics": ["accuracy"],
        },
        "found": ("csv", "text_label", 2337, 2336, False),
        "left out": {
            "no answer token within max_length=256": 47,
            "repeats ": 4,
            "'text' is empty": 1,
        },
        "rows": {"train": 2152, "validation": 45, "test": 88},
        "classes": {
            "train": {"news": 1170, "direct": 982},
            "validation": {"news": 24, "direct": 21},
            "test": {"news": 47, "direct": 41},
        },
        "scores": {"accuracy"},
        "before": 8.16,
        "after": 0.3,
        "interval": -7,
    },  # 0.04 0.02 0.05, -7.9 -7.9 -7.9
    "uci_sentiment": {
        "settings": {
            "data": "uci_sentiment/amazon_cells_labelled.txt",
            "format": {"tsv": {"header": False}},
            "columns": {"text": "1", "label": "2"},
            "max_length": 256,
            "validation_fraction": 0.05,
            "metrics": ["accuracy"],
        },
        "found": ("tsv", "text_label", 1000, 1000, True),
        "left out": {"repeats ": 10},
        "rows": {"train": 841, "validation": 50, "test": 99},
        "classes": {
            "train": {"0": 422, "1": 419},
            "validation": {"0": 25, "1": 25},
            "test": {"0": 50, "1": 49},
        },
        "scores": {"accuracy"},
        "before": 11.91,
        "after": 0.4,
        "interval": -10,
    },  # 0.24 0.22 0.23, -11.4 -11.4 -11.4
    "tatoeba_pairs": {
        "settings": {
            "data": "tatoeba_pairs/tatoeba.deu-eng.deu",
            "max_length": 256,
            "validation_fraction": 0.05,
            "format": {"parallel": {"target": "tatoeba.deu-eng.eng"}},
            "metrics": ["bleu", "chrf"],
            "max_new_tokens": 32,
        },
        "found": ("parallel", "translation", 1000, 1000, False),
        "left out": {"no answer token within max_length=256": 1},
        "rows": {"train": 849, "validation": 50, "test": 100},
        "scores": {"bleu", "chrf"},
        "before": 3.63,
        "after": 2.75,
        "interval": -0.7,
    },  # 2.51 2.50 2.44, -1.03 -1.03 -1.10
    # The base was trained on such stories: what it learns is the token that ends one, 26 nats before.
    "tinystories_text": {
        "settings": {
            "data": "tinystories_text/tinystories_sample.txt",
            "max_length": 256,
            "global_batch_size": 4,
            "learning_rate": 3e-3,
            "validation_fraction": 0.02,
            "test_fraction": 0.03,
        },
        "found": ("txt", "text", 2317, 2317, True),
        "left out": {},
        "rows": {
            "train": 4993,
            "validation": 107,
            "test": 162,
        },  # pieces of 2201, 46 and 70 stories
        "scores": {"token_accuracy"},
        "before": 1.590,
        "after": 1.58,
        "interval": -0.005,
    },  # 1.559 1.551 1.482, -0.020 -0.020 -0.018
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_public_file_trains_as_it_is(real_data, quick, tmp_path, capsys, name):
    case = FILES[name]
    run = settings(
        real_data,
        tmp_path,
        **{"max_updates": 60, "validate_every": 30, "max_new_tokens": 8, **case["settings"]},
    )
    run.write(tmp_path / "run.yaml")
    code = main(["check", str(tmp_path / "run.yaml"), "--json"])
    seen = json.loads(capsys.readouterr().out)
    report = seen["report"]
    found = (
        report["format"],
        report["schema"],
        report["rows"],
        seen["rows"]["train"],
        seen["usable"],
    )
    assert found == case["found"]
    assert code == (0 if seen["usable"] else 1)

    prepared = lorakit.prepare(run)
    reasons = [r.reason for r in prepared.report.rejected]
    assert {start: sum(r.startswith(start) for r in reasons) for start in case["left out"]} == case[
        "left out"
    ]
    assert len(reasons) == sum(case["left out"].values())
    assert {n: len(rows) for n, rows in prepared.rows.items()} == case["rows"]
    if "classes" in case:
        assert {n: Counter(rows.column("reference")) for n, rows in prepared.rows.items()} == case[
            "classes"
        ]
    assert likeness(prepared) < 0.8

    folder = lorakit.finetune(run)
    score = folder.scores["loss"]
    assert folder.record["status"] == "done"
    assert set(folder.scores) == {"loss", "perplexity"} | case["scores"]
    assert score["rows"] == case["rows"]["test"]
    assert score["before"] == pytest.approx(case["before"], abs=0.02)
    assert score["after"] <= case["after"]
    assert score["interval"][1] <= case["interval"]  # below zero


def likeness(prepared):
    """The largest Jaccard index of word 3-grams between rows of two sets, every pair compared."""
    from sklearn.feature_extraction.text import CountVectorizer

    words = defaultdict(str)
    for name, rows in prepared.rows.items():
        for row in rows:  # pieces of a text have its number
            words[name, row["row"]] += prepared.tokenizer.decode(
                row["ids"], skip_special_tokens=True
            )
    grams = CountVectorizer(ngram_range=(3, 3), token_pattern=r"\S+", binary=True, dtype=np.int32)
    counts, sets = grams.fit_transform(words.values()), np.array([name for name, _ in words])
    most = 0.0
    for one, other in combinations(prepared.rows, 2):
        a, b = counts[sets == one], counts[sets == other]
        both = (a @ b.T).toarray()
        either = np.asarray(a.sum(axis=1)) + np.asarray(b.sum(axis=1)).T - both
        most = max(most, (both / either).max())
    return most


# Photos and speech, from the raw folders by settings alone

SMALL = {"precision": "fp32", "quantization": "none", "learning_rate": 3e-3, "max_new_tokens": 6}


@pytest.mark.slow
def test_maize_leaves_with_one_bad_file(real_data, quick, tmp_path):
    shutil.copytree(real_data / "maize_leaf", tmp_path / "maize_leaf")
    (tmp_path / "maize_leaf" / "Blight" / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    base, _ = stand_in("vit-base", tmp_path)
    folder = lorakit.finetune(
        lorakit.Run(
            name="maize",
            model=base,
            data=str(tmp_path / "maize_leaf"),
            max_updates=60,
            test_fraction=0.3,
            output_dir=str(tmp_path),
            **SMALL,
        )
    )
    scores = folder.scores
    assert (
        scores["loss"]["interval"][1] < 0
        and scores["accuracy"]["after"] > scores["accuracy"]["before"]
    )
    assert scores["accuracy"]["rows"] >= 30
    (bad,) = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert bad["file"].endswith("Blight/broken.jpg") and bad["reason"].startswith("broken.jpg: is")
    report = (folder / "report.md").read_text()
    assert "no group_by: shots of one leaf" in report and "confusion.png" in report


@pytest.mark.slow
def test_spoken_digits_by_speakers_never_heard(real_data, quick, tmp_path):
    base, _ = stand_in("whisper-small", tmp_path)
    folder = lorakit.finetune(
        lorakit.Run(
            name="digits",
            model=base,
            data=str(real_data / "fsdd"),
            columns={"text": "{digit}"},
            group_by="speaker",
            format={"folder": {"options": {"sounds": {"names": "{digit}_{speaker}_{take}"}}}},
            max_length=64,
            max_updates=40,
            output_dir=str(tmp_path),
            **SMALL,
        )
    )
    scores = folder.scores
    assert scores["loss"]["difference"] < 0 and {"wer", "cer"} <= set(scores)
    assert scores["loss"]["interval"] == [
        None,
        None,
    ]  # one speaker is one piece of evidence, whatever he says
    prompts = [
        json.loads(line)["prompt"] for line in (folder / "answers.jsonl").read_text().splitlines()
    ]
    assert len({name.split("_")[1] for name in prompts}) == 1 and len(prompts) == 80

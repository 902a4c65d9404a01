"""Real pretrained checkpoints (`LORAKIT_TEST_MODELS`): read as llama.cpp reads them, and taken by the tasks they serve."""

import json
import os
import urllib.request
from pathlib import Path

import pytest

import lorakit
from lorakit.models import base_model

pytestmark = pytest.mark.real
ODD = (
    "  two  spaces\n\n\n newlines\t tab",
    "émoji 👩‍🚀🇩🇪 ok",
    "中文 字符 テスト",
    "1234567890 3.14e-7",
    "don't we'll I'M",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<start_of_turn>user\nhi<end_of_turn>",
    "a" * 60,
    "\u00a0nbsp\u200bzw",
    "x=1;\n    if x:\r\n\treturn",
    "ÀÉÎÕÜ ñ ß ŉ ﬁ",
    "مرحبا بالعالم",
    "हिन्दी में",
    "\x07bell",
    "~!@#$%^&*()_+{}|:\"<>?`-=[]\\;',./",
    " ",
    " leading",
    "trailing ",
    "",
    "…—–“”",
)


@pytest.fixture(scope="module")
def models():
    """The folder that models/fetch.py has filled."""
    folder = os.environ.get("LORAKIT_TEST_MODELS")
    if not folder or not Path(folder).is_dir():
        say = pytest.fail if os.environ.get("LORAKIT_REQUIRE_REAL") else pytest.skip
        say("no real models: set LORAKIT_TEST_MODELS to the folder that holds them")
    return Path(folder).resolve()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_a_gguf_files_tokens_are_llama_cpps(models, real_data, name):
    xllamacpp = pytest.importorskip("xllamacpp")
    (file,) = (models / name).glob("*.gguf")
    tokenizer, _, _ = base_model.reader(str(file))
    wanted = xllamacpp.CommonParams()
    wanted.model.path, wanted.n_ctx, wanted.n_parallel, wanted.verbosity = str(file), 512, 1, -1
    wanted.hostnames, wanted.port, wanted.warmup = ["127.0.0.1"], 0, False
    wanted.endpoint_metrics = True
    running = xllamacpp.Server(wanted)
    running.handle_metrics()  # see lorakit.exporting.targets.gguf.server

    def read(text, special):
        given = {"content": text, "add_special": special, "parse_special": True}
        call = urllib.request.Request(
            f"{running.listening_address}/tokenize",
            json.dumps(given).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(call, timeout=600) as answer:
            return json.load(answer)["tokens"]

    rows = json.loads((real_data / "instruction_small/instruction-data.json").read_text())
    german = (real_data / "tatoeba_pairs/tatoeba.deu-eng.deu").read_text().splitlines()
    texts = [f"{r['instruction']}\n{r['output']}" for r in rows[:120]] + german[:60] + [*ODD]
    assert len(texts) == 200
    for text in texts:
        assert read(text, False) == tokenizer(text, add_special_tokens=False)["input_ids"], text
        assert read(text, True) == tokenizer(text)["input_ids"], text


def test_minilm_is_taken_for_classes_and_refused_for_answers(models, real_data, tmp_path):
    model = str(models / "minilm-l6")
    rows = str(real_data / "disaster_response/disaster_response_validation.csv")
    run = lorakit.Run(
        model=model,
        data=rows,
        columns={"text": "message", "label": "aid_related"},
        max_rows=60,
        output_dir=str(tmp_path),
    )
    prepared = lorakit.prepare(run)
    assert prepared.meta["task"] == "classify_text" and prepared.meta["classes"] == ["0", "1"]
    assert prepared.max_length == 512
    with pytest.raises(lorakit.LorakitError, match="classify_text"):
        lorakit.prepare(run.with_(task="chat"))

"""A base model from a GGUF file: dequantized, or with its blocks kept as they are."""

import json
import struct
from pathlib import Path

import gguf as package
import numpy as np
import pytest
from helpers import gguf_files

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.common.files import file_hash
from lorakit.models import base_model, gguf

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "small.gguf", "q4_1", TEMPLATE)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    path = tmp_path_factory.mktemp("answers") / "rows.jsonl"
    lines = [{"prompt": f"where is {i}?", "completion": f"at {i}"} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def run(model, data, folder, **changes):
    return lorakit.Run(
        **{
            "name": "run",
            "model": model,
            "data": data,
            "output_dir": str(folder),
            "engine": "torch",
            "precision": "fp32",
            "quantization": "none",
            "max_length": 64,
            "max_updates": 6,
            "max_new_tokens": 8,
            "learning_rate": 1e-3,
            **changes,
        }
    )


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_the_header_says_where_each_tensor_lies(kind, tmp_path):
    header = gguf.read(Path(gguf_files.write(tmp_path / "a.gguf", kind)))
    tensor = header.tensors["blk.1.ffn_down.weight"]
    expected = {t.name: t for t in package.GGUFReader(header.path).tensors}[tensor.name]
    assert header.architecture == "llama" and tensor.kind == kind and tensor.shape == (256, 512)
    np.testing.assert_array_equal(
        header.blocks(tensor).ravel(), expected.data.view(np.uint8).ravel()
    )
    bits = {"q8_0": 8.5, "q4_0": 4.5, "q4_1": 5.0}
    assert header.bits_per_weight == bits.get(kind, 16)


def header_of(alignment):
    """A file without tensors whose metadata are an architecture and `general.alignment`, as type and value."""
    text = lambda words: struct.pack("<Q", len(words)) + words
    architecture = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    return start + architecture + text(b"general.alignment") + alignment


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGML", "begin with GGUF"),
        (b"GGUF\x01\0\0\0", "version 1"),
        (b"GGUF\x03\0\0\0", "cannot be read"),
        (header_of(struct.pack("<II", 4, 0)), "general.alignment is 0"),
        (header_of(struct.pack("<IQ", 8, 1) + b"x"), "general.alignment is 'x'"),
        (header_of(struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20_000), "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(content, words, tmp_path):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(LorakitError, match=words) as refused:
        gguf.read(tmp_path / "a.gguf")
    assert refused.value.setting == "model" and "a.gguf" in str(refused.value)


def test_a_file_cut_in_the_middle_of_its_tensors_is_refused(file, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(Path(file).read_bytes()[:-1000])
    with pytest.raises(LorakitError, match="its tensors need"):
        gguf.read(tmp_path / "cut.gguf")


def test_template_tokens_and_hash_are_the_files(file):
    tokenizer, _, notes = base_model.reader(file)
    assert tokenizer.chat_template == TEMPLATE and notes == []
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer("that")["input_ids"] == tokenizer.convert_tokens_to_ids(["th", "at"])
    assert base_model.hash_of(file) == file_hash(Path(file))


def test_packed_and_dequantized_weights_train_alike(file, answers, quick, tmp_path):
    """One file, two ways to hold it: the same losses, but for fp16's rounding of dequantized weights."""
    losses = {}
    for quantization in ("none", "gguf"):
        folder = lorakit.finetune(
            run(file, answers, tmp_path, name=quantization, quantization=quantization)
        )
        assert folder.record["status"] == "done"
        lines = (folder / "history.jsonl").read_text().splitlines()
        losses[quantization] = [
            found["loss"] for line in lines if "loss" in (found := json.loads(line))
        ]
    assert losses["none"][0] > losses["none"][-1]
    np.testing.assert_allclose(losses["gguf"], losses["none"], rtol=1e-3)


def test_blocks_cannot_be_kept_of_a_folder_that_has_none(base, answers, tmp_path):
    with pytest.raises(LorakitError, match="no blocks to keep"):
        lorakit.finetune(run(base, answers, tmp_path, quantization="gguf"))


def test_a_file_that_is_not_there_is_refused(answers, tmp_path):
    with pytest.raises(LorakitError, match="no such file"):
        lorakit.prepare(run(str(tmp_path / "none.gguf"), answers, tmp_path))

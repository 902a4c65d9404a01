"""Every family and every kind of tokenizer, written for llama.cpp, onnxruntime and mlx-lm and read by them."""

import importlib
import shutil

import pytest
from helpers.tuned import FAMILIES, content, shrunken, tuned_run

from lorakit.common import registry

exporting = importlib.import_module("lorakit.exporting.round_trip")
EVERY = [
    (target, kind)
    for target in registry.names("export")
    for kind in registry.load("export", target).TARGET.types
]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"mistral"}))
def test_every_family_as_gguf(family, tmp_path, here):
    run = tuned_run(shrunken(family, tmp_path / "base"), tmp_path, max_updates=30).path
    found = content(exporting.export(run, "gguf", tmp_path / "out", type="f32"))
    assert found["texts_read_alike"] == 24 and found["conversations_written_alike"] >= 2
    if family == "gpt_oss":  # llama.cpp rounds the ends of YaRN's ramp
        assert found["agreement"]["tokens"] >= 0.8 and abs(found["perplexity"]["added_nats"]) < 0.02
    else:
        assert found["agreement"]["tokens"] == 1 and abs(found["perplexity"]["added_nats"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_every_format(family, tmp_path, here, capsys):
    """The table of agreement; gpt-oss's YaRN is the one thing that llama.cpp and mlx-lm compute otherwise."""
    run = tuned_run(shrunken(family, tmp_path / "base"), tmp_path).path
    for target, kind in EVERY:
        found = content(exporting.export(run, target, tmp_path / f"{target}-{kind}", type=kind))
        with capsys.disabled():
            print(
                f"\n{family} {target} {kind}: {found['agreement']['identical']} of 24, tokens "
                f"{found['agreement']['tokens']:.3f}, {found['perplexity']['added_nats']:+.1e} nats",
                end="",
            )
        if kind in ("fp32", "f32") and not (family == "gpt_oss" and target in ("gguf", "mlx")):
            assert found["agreement"]["identical"] == 24
        assert found["agreement"]["distinct"] >= 10


@pytest.mark.slow
def test_stories_with_a_sentencepiece_tokenizer(real_data, tmp_path, here):
    model = shutil.copytree(real_data / "stories260K" / "hf", tmp_path / "base")
    run = tuned_run(str(model), tmp_path, learning_rate=5e-3).path
    for kind in ("f32", "q8_0"):
        found = content(exporting.export(run, "gguf", tmp_path / kind, type=kind))
        assert found["texts_read_alike"] == 24 and found["agreement"]["distinct"] >= 10
        assert found["agreement"]["tokens"] >= (1 if kind == "f32" else 0.85)


def unigram():
    """A Unigram tokenizer as SentencePiece makes them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [
        (c, -8.0 - i / 100) for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789?.,|<>:\n▁")
    ]
    words = [
        (w, -3.0 - i / 10)
        for i, w in enumerate("▁go ▁then bridge school market river chapel mill".split())
    ]
    raw = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *words, *letters], unk_id=0))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    raw.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )


def test_a_unigram_tokenizer_is_read_alike(tmp_path, here):
    model = shrunken(
        "llama", tmp_path / "base", vocab_size=64, bos_token_id=None, eos_token_id=1, pad_token_id=1
    )
    shutil.rmtree(tmp_path / "base" / "chat_template.jinja", ignore_errors=True)
    unigram().save_pretrained(model)
    run = tuned_run(model, tmp_path, max_updates=20).path
    found = content(exporting.export(run, "gguf", tmp_path / "out", type="f32"))
    assert found["texts_read_alike"] == 24 and found["agreement"]["identical"] >= 23  # one near-tie
    assert found["divergence"]["own_rows"]["nats"] < 1e-6

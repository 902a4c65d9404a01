"""Exports: each target's own runtime repeats what the tuned model says, and what fails leaves nothing behind."""

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tuned import FAMILIES, shrunken, tuned_run

from lorakit import cli, registry
from lorakit.errors import LorakitError
from lorakit.machine import child_environment

exporting = importlib.import_module("lorakit.export")
EVERY = [(target, kind) for target in registry.names("export") for kind in registry.load("export", target).TYPES]


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    """A tuned run with 24 different answers. Only to be read."""
    folder = tmp_path_factory.mktemp("mistral")
    return tuned_run(shrunken("mistral", folder / "base"), folder).path


@pytest.fixture
def here(monkeypatch):
    """The round trip in this process: what a fresh one computes, some seconds faster."""
    def again(part, found, target, kind):
        return json.loads(json.dumps(exporting.measure(part, found, target)))

    monkeypatch.setattr(exporting, "again", again)


def content(folder):
    return json.loads((folder / "export.json").read_text())


def left(folder):
    """What stands beside an export that was to be written here."""
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("name", registry.names("export"))
def test_a_target_keeps_the_contract(name):
    module = registry.load("export", name)
    assert module.TYPES and set(module.BOUNDS) == set(module.TYPES)
    for kind in module.TYPES:
        share, added = module.BOUNDS[kind]
        disk, memory = module.room(10**9, kind)
        assert 0.5 <= share <= 1 and 0 < added <= 1 and disk > 1e7 and memory > 1e9


@pytest.mark.parametrize("target, kind", EVERY, ids=[f"{t}-{k}" for t, k in EVERY])
def test_the_runtime_repeats_the_tuned_model(mistral, tmp_path, here, target, kind):
    found = content(exporting.export(mistral, target, tmp_path / "out", type=kind))
    assert found["agreement"]["prompts"] == found["agreement"]["distinct"] == 24
    assert not found["agreement"]["proves_little"]
    if kind in ("fp32", "f32"):
        assert found["agreement"]["identical"] == 24 and abs(found["perplexity"]["added_nats"]) < 1e-5
    if kind in ("fp16", "bf16", "f16", "q8_0"):
        assert found["agreement"]["tokens"] >= 0.95 and abs(found["perplexity"]["added_nats"]) < 0.02
    assert found["bytes"] == sum(f["bytes"] for n, f in found["files"].items()
                                 if n.endswith((".safetensors", ".gguf", ".onnx")))
    assert found["tokens_per_second"]["after"] > 0 and found["base_sha256"]
    assert left(tmp_path) == ["out"]


def test_sizes_follow_the_bits(mistral, tmp_path, here):
    size = {kind: content(exporting.export(mistral, "gguf", tmp_path / kind, type=kind))["bytes"]
            for kind in ("f32", "f16", "q8_0", "q4_0")}
    weights = size["f32"] - size["f16"]  # in units of 2 bytes
    assert size["f16"] - size["q8_0"] == pytest.approx(weights * (16 - 8.5) / 16, rel=0.02)
    assert size["q8_0"] - size["q4_0"] == pytest.approx(weights * 4 / 16, rel=0.02)


def test_a_fresh_process_proves_it_and_the_command_says_so(mistral, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["export", str(mistral), "--to", "gguf", "--type", "f32", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}\ngguf f32: " in said and "loaded by a fresh process" in said
    assert "24 of 24 greedy answers are the tuned model's, token by token (100.0% of the tokens" in said
    assert {"Modelfile", "model.gguf", "export.json"} == set(left(out))
    (line,) = exporting.table(out)
    assert line["export"] == "gguf f32" and line["identical_answers"] == "24 of 24" and line["equal_tokens"] == 1.0


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"mistral"}))
def test_every_family_as_gguf(family, tmp_path, here):
    run = tuned_run(shrunken(family, tmp_path / "base"), tmp_path, max_updates=30).path
    found = content(exporting.export(run, "gguf", tmp_path / "out", type="f32"))
    assert found["texts_read_alike"] == 24 and found["chat_template_alike"]
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
            print(f"\n{family} {target} {kind}: {found['agreement']['identical']} of 24, tokens "
                  f"{found['agreement']['tokens']:.3f}, {found['perplexity']['added_nats']:+.1e} nats", end="")
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


# What a quantized base, a whole model and several adapters become


def test_a_quantized_base_is_merged_into_its_unquantized_weights(tmp_path, here):
    run = tuned_run(shrunken("llama", tmp_path / "base"), tmp_path, quantization="nf4").path
    found = content(exporting.export(run, "merged", tmp_path / "out", type="fp32"))
    (note,) = found["notes"]
    assert note.startswith("tuned on a base in nf4, merged into its unquantized weights: ")
    assert "of 24 answers stay the same" in note
    assert found["perplexity"]["trained"] != pytest.approx(found["perplexity"]["before"], rel=1e-4)
    assert found["agreement"]["identical"] == 24


def test_16_bits_are_merged_in_fp32_and_cast_once(mistral, tmp_path, here):
    """W + s B A of fp32 numbers, rounded to bf16: not a sum of rounded ones."""
    from safetensors.torch import load_file

    from lorakit import convert

    exporting.export(mistral, "merged", tmp_path / "out", type="bf16")
    name = "model.layers.1.self_attn.q_proj"
    settings, layers = convert.read_peft(mistral / "adapter")
    base = load_file(json.loads((mistral / "record.json").read_text())["model"] + "/model.safetensors")
    pair = layers[name]
    expected = base[f"{name}.weight"].numpy() + convert.scale(settings) * pair["B"] @ pair["A"]
    saved = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"]
    import torch
    assert saved.dtype == torch.bfloat16
    differs = saved != torch.from_numpy(expected).bfloat16()
    assert differs.float().mean() < 0.001  # the last bit of a sum in another order


def test_a_whole_model(tmp_path, here):
    run = tuned_run(shrunken("llama", tmp_path / "base"), tmp_path, method="full", learning_rate=3e-3,
                    max_updates=20).path
    assert content(exporting.export(run, "merged", tmp_path / "out", type="fp32"))["agreement"]["identical"] == 24
    with pytest.raises(LorakitError, match="method=full has no adapter; export it --to merged"):
        exporting.export(run, "adapter", tmp_path / "adapter")
    assert left(tmp_path / "adapter") == []


def test_adapters_of_one_base_go_together_and_are_switched(mistral, tmp_path, here):
    base = json.loads((mistral / "record.json").read_text())["model"]
    other = tuned_run(base, tmp_path, name="other", shift=5).path
    found = content(exporting.export(mistral, "adapter", tmp_path / "out", also=[str(other)]))
    assert found["switched"] == {"other": 1.0} and found["agreement"]["identical"] == 24
    assert found["notes"] == ["adapters to switch by name: run, other"]
    assert left(tmp_path / "out") == ["export.json", "other", "run"]


# llama.cpp's rules, by hand


def test_rows_of_a_head_are_interleaved():
    from lorakit.export.gguf import interleave

    rows = np.arange(8).reshape(8, 1)  # two heads of four: halves (0 1 | 2 3), (4 5 | 6 7)
    assert interleave(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("kind, bits, error", [("Q4_K", 4.5, 0.08), ("Q5_K", 5.5, 0.04), ("Q6_K", 6.5625, 0.02)])
def test_k_types_are_what_the_package_gguf_reads(kind, bits, error):
    import gguf

    from lorakit.export.gguf import packed

    tensor = np.random.default_rng(0).normal(size=(3, 16, 512)).astype(np.float32)
    stored = gguf.GGMLQuantizationType[kind]
    data = packed(tensor, stored)
    assert data.nbytes * 8 / tensor.size == bits
    back = gguf.quants.dequantize(data, stored)
    assert back.shape == tensor.shape and np.sqrt(np.mean((back - tensor) ** 2)) < error


def test_q4_k_m_gives_more_bits_where_llama_cpp_does():
    from lorakit.export.gguf import mixed

    assert [mixed(f"blk.{i}.ffn_down.weight", 16) for i in range(16)] == [
        "Q6_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K",
        "Q6_K", "Q6_K"]
    assert mixed("blk.0.attn_q.weight", 16) == "Q4_K" and mixed("token_embd.weight", 16) == "Q6_K"


def test_the_modelfile_holds_the_turns_and_the_stop(mistral, tmp_path, here):
    text = (exporting.export(mistral, "gguf", tmp_path / "out", type="q8_0") / "Modelfile").read_text()
    assert text.splitlines()[:2] == ["# ollama create run -f Modelfile", "FROM ./model.gguf"]
    assert "<|user|>\n{{ .Prompt }}<|end|>\n<|assistant|>\n{{ end }}{{ .Response }}" in text
    assert 'PARAMETER stop "<|end|>"' in text


def unigram():
    """A Unigram tokenizer as SentencePiece makes them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [(c, -8.0 - i / 100) for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789?.,|<>:\n▁")]
    words = [(w, -3.0 - i / 10) for i, w in enumerate("▁go ▁then bridge school market river chapel mill".split())]
    raw = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *words, *letters], unk_id=0))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    raw.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>", pad_token="</s>",
                                   chat_template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
                                                 "{% if m['role'] == 'assistant' %}</s>{% endif %}\n{% endfor %}"
                                                 "{% if add_generation_prompt %}assistant: {% endif %}")


def test_a_unigram_tokenizer_is_read_alike(tmp_path, here):
    model = shrunken("llama", tmp_path / "base", vocab_size=64, bos_token_id=None, eos_token_id=1, pad_token_id=1)
    shutil.rmtree(tmp_path / "base" / "chat_template.jinja", ignore_errors=True)
    unigram().save_pretrained(model)
    run = tuned_run(model, tmp_path, max_updates=20).path
    found = content(exporting.export(run, "gguf", tmp_path / "out", type="f32"))
    assert found["texts_read_alike"] == 24 and found["agreement"]["identical"] == 24


# What fails says so, and leaves nothing


@pytest.fixture
def mine(mistral, tmp_path):
    """A run that a test may damage."""
    return Path(shutil.copytree(mistral, tmp_path / "mine"))


def refused(run, target, out, words, **options):
    with pytest.raises(LorakitError, match=words):
        exporting.export(run, target, out, **options)
    assert left(out.parent) == []


def test_a_run_that_is_not_done(mine, tmp_path):
    record = json.loads((mine / "record.json").read_text())
    (mine / "record.json").write_text(json.dumps(record | {"status": "stopped"}))
    refused(mine, "gguf", tmp_path / "at" / "out", "status stopped: only a finished run can be exported")


def test_another_base_than_it_was_tuned_on(mine, tmp_path):
    record = json.loads((mine / "record.json").read_text())
    (mine / "record.json").write_text(json.dumps(record | {"base_sha256": "0" * 64}))
    refused(mine, "gguf", tmp_path / "at" / "out", "now has other weights than this run was tuned on")


def test_an_adapter_of_another_base(mine, tmp_path):
    settings = json.loads((mine / "adapter" / "adapter_config.json").read_text())
    (mine / "adapter" / "adapter_config.json").write_text(json.dumps(
        settings | {"base_model_name_or_path": "someone/other"}))
    refused(mine, "merged", tmp_path / "at" / "out", "this adapter was made for someone/other, and the run tuned")


def test_an_adapter_of_another_shape(mine, tmp_path, here):
    from safetensors.numpy import load_file, save_file

    exporting.reference(exporting.source(mine))
    path = mine / "adapter" / "adapter_model.safetensors"
    tensors = {k: v[:, :-32] if "lora_A" in k else v for k, v in load_file(path).items()}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, {"format": "pt"})
    refused(mine, "merged", tmp_path / "at" / "out", "Was it made for another base")


def test_a_missing_chat_template(mine, tmp_path):
    (mine / "adapter" / "chat_template.jinja").unlink()
    refused(mine, "gguf", tmp_path / "at" / "out", "its tokenizer has no chat template")


def test_unknown_targets_and_types(mistral, tmp_path):
    refused(mistral, "ggfu", tmp_path / "out", "there is no 'ggfu' in export/; did you mean 'gguf'")
    refused(mistral, "gguf", tmp_path / "out", "--type q8: gguf has q8_0, .*; did you mean 'q8_0'", type="q8")


def test_a_folder_that_is_no_export_stays(mistral, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LorakitError, match="is there already and holds no export"):
        exporting.export(mistral, "gguf", tmp_path)
    assert left(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("what", ["disk", "memory"])
def test_room_is_looked_at_first(mistral, tmp_path, monkeypatch, what):
    import psutil

    if what == "disk":
        monkeypatch.setattr(exporting.machine, "facts", lambda folder: SimpleNamespace(disk_free=1000))
    else:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=2**34))
    where = "on the disk" if what == "disk" else "of memory"
    refused(mistral, "gguf", tmp_path / "out", rf"f32 of 0.00 billion weights needs 0.0 GB {where} while it is made",
            type="f32")


def test_a_full_disk_leaves_nothing(mistral, tmp_path, here, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(registry.load("export", "gguf"), "packed", full)
    refused(mistral, "gguf", tmp_path / "at" / "out", "could not be written: No space left on device")


def test_another_model_is_not_called_done(mistral, tmp_path, here, monkeypatch):
    """Here the export forgets that llama.cpp rotates neighbours."""
    monkeypatch.setattr(registry.load("export", "gguf"), "interleave", lambda value, heads: value)
    refused(mistral, "gguf", tmp_path / "at" / "out", "gguf f32: done is refused: .* of the greedy tokens", type="f32")


def test_other_tokens_are_not_called_done(mistral, tmp_path, here, monkeypatch):
    import gguf

    every = gguf.GGUFWriter.add_token_merges
    monkeypatch.setattr(gguf.GGUFWriter, "add_token_merges", lambda writer, pairs: every(writer, pairs[:100]))
    refused(mistral, "gguf", tmp_path / "at" / "out", "llama.cpp reads .* of 24 texts as other tokens", type="f32")


def test_killed_in_mid_export(mistral, tmp_path, here):
    out = tmp_path / "at" / "out"
    code = ("import importlib, sys, time; g = importlib.import_module('lorakit.export.gguf'); g.write = lambda m, s, "
            "path, kind: (path.write_bytes(b'half'), print('writing', flush=True), time.sleep(60)); "
            "importlib.import_module('lorakit.export').export(*sys.argv[1:])")
    child = subprocess.Popen([sys.executable, "-c", code, str(mistral), "gguf", str(out)], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True, env=child_environment())
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists() and left(out.parent) == [f"out.part{child.pid}"]
    began = time.monotonic()
    exporting.export(mistral, "gguf", out)
    assert left(out.parent) == ["out"] and time.monotonic() - began < 60

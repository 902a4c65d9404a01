"""What is planned for cards: fp16 products where fp16 overflows, 4-bit copies, answers' memory, the rate of products."""

import os
import re
import subprocess
import sys

import pytest
import torch
from helpers.engines import SMALL
from helpers.machines import A100, PACKAGES, T4, facts
from helpers.models import save_base
from helpers.paths import ROOT
from transformers import LlamaConfig

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.engines.torch.kernels import attention
from lorakit.planning import choose, ladder, memory

sys.path.insert(0, str(ROOT / "bench"))
import t4_plan

GIB = 2**30
T4_GIB = 14.56  # what a T4 leaves to programs


def run(model, **changes):
    return lorakit.Run(data="-", model=model, **{"engine": "torch", **changes})


@pytest.mark.parametrize("model", ["gemma-3-1b", "gemma-3n-e2b", "gpt-oss-20b"])
def test_products_in_fp16_for_models_that_overflow(model):
    spec = choose.base_model.spec(model)
    value, reason = choose.precision(run(model), facts(T4), spec)
    assert value == "fp16"
    assert reason == (
        f"Tesla T4 has no bf16 hardware, and {model} overflows in fp16: its products alone are in "
        "fp16, all else is in fp32"
    )
    assert choose.precision(run(model), facts(A100), spec)[0] == "bf16"
    assert choose.precision(run(model, precision="fp16"), facts(T4), spec)[0] == "fp16"


@pytest.mark.parametrize(
    "changes", [{"method": "full"}, {"quantization": "int8"}], ids=["full", "int8"]
)
def test_what_has_no_products_in_fp16_stays_in_fp32(changes):
    spec = choose.base_model.spec("gemma-3-1b")
    assert choose.precision(run("gemma-3-1b", **changes), facts(T4), spec)[0] == "fp32"


def test_bf16_on_a_card_without_it_is_refused(base):
    with pytest.raises(LorakitError) as error:
        choose.resolve(run(base, precision="bf16"), facts(T4))
    assert (error.value.setting, error.value.value) == ("precision", "bf16")
    assert "precision=auto" in error.value.cure
    choose.resolve(run(base, precision="bf16"), facts(A100))


def test_a_refusal_names_the_copy_in_four_bits():
    assert ladder.quantized_copies("gpt-oss-20b") == ["gpt-oss-20b-nf4"]
    assert ladder.quantized_copies("phi-3-mini") == []
    resolved = run(
        "gpt-oss-20b",
        precision="fp16",
        quantization="none",
        max_length=512,
        micro_batch_size=1,
        micro_batch_tokens=512,
        gradient_checkpointing=True,
    )
    with pytest.raises(LorakitError, match="take model=gpt-oss-20b-nf4"):
        ladder.refuse(resolved, facts(T4))


def test_memory_of_answers():
    """Phi-3-mini: 2 · 32 layers · 32 heads · 96 values of 2 bytes a token, 16 prompts of 1,024 + 128 tokens."""
    found = memory.generation(
        run("phi-3-mini", precision="fp16", max_length=1024, max_new_tokens=128)
    )
    assert found == 2 * 32 * 32 * 96 * 2 * 16 * (1024 + 128)


@pytest.mark.parametrize(("model", "most"), [("gemma-3n-e2b", 7.5), ("gemma-3n-e4b", 9.5)])
def test_weights_of_gemma_3n_fit_a_t4(model, most):
    """Embeddings and per-layer embeddings in 16 bits, whatever is computed in."""
    pytest.importorskip("timm")
    found = run(model, precision="fp16", quantization="nf4", task="chat_images")
    of = memory.shape(found)
    weights = memory.frozen(found, of) / GIB
    assert weights < most < T4_GIB
    wide = memory.frozen(found.with_(precision="fp32"), of) / GIB
    assert wide - weights > 4


def test_unsloths_weights_are_planned_in_16_bits():
    pytest.importorskip("timm")
    found = run("gemma-3n-e2b", precision="fp32", quantization="nf4", engine="unsloth")
    of = memory.shape(found)
    assert memory.frozen(found, of) == memory.frozen(
        found.with_(engine="torch", precision="fp16"), of
    )


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_the_rate_is_of_products_in_the_dtype_used(monkeypatch, precision, dtype):
    seen, plain = set(), torch.Tensor.__matmul__

    def product(self, other):
        seen.add(self.dtype)
        return plain(self[:8, :8].float(), other[:8, :8].float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    assert memory.matmul_rate(precision) > 0 and seen == {dtype}


@pytest.mark.parametrize("model", ["gemma-3n-e2b", "gemma-3n-e4b"])
def test_unsloth_is_not_refused_on_a_t4(model):
    """The project's first example, where Unsloth is installed."""
    pytest.importorskip("timm")
    kaggle = facts(T4, packages=PACKAGES | {"unsloth": "2026.10.9"})
    wanted = lorakit.Run(model=model, data="-", task="chat_images", quantization="nf4")
    resolved, _ = choose.resolve(wanted, kaggle)
    assert resolved.engine == "unsloth"
    ladder.refuse(resolved, kaggle)


def test_a_second_plan_imports_neither_torch_nor_transformers():
    """Everything that is counted lies in the cache: seconds of imports were most of such a plan."""
    script = """
import sys
from helpers.machines import T4, facts
import lorakit
from lorakit.planning import choose, memory
run = lorakit.Run(data="-", model="opt-125m", engine="torch")
found, _ = choose.resolve(run, facts(T4))
print(found.micro_batch_tokens, memory.generation(found), {"torch", "transformers"} & set(sys.modules))
"""
    found, _ = choose.resolve(run("opt-125m"), facts(T4))
    answers = memory.generation(found)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    out = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert out.stdout == f"{found.micro_batch_tokens} {answers} set()\n", out.stderr[-2000:]


@pytest.fixture
def small(tmp_path):
    return save_base(tmp_path, LlamaConfig(**SMALL | {"num_hidden_layers": 8}))


def counted(small, *cards, **changes):
    wanted = run(small, precision="fp16", quantization="none", max_length=256, **changes)
    wanted = wanted.with_(micro_batch_tokens=1024, micro_batch_size=4)
    return memory.working(wanted, memory.shape(wanted), facts(*cards))


def test_memory_is_counted_with_the_kernels_of_the_card(monkeypatch, small):
    """On this machine, for another: whoever plans need not have the card."""
    seen = []
    for name in ("flash", "efficient", "by_document"):
        plain = getattr(attention, name)
        monkeypatch.setattr(
            attention, name, lambda *a, n=name, p=plain, **k: seen.append(n) or p(*a, **k)
        )
    chosen = {}
    for name, card in {"T4": T4, "A100": A100}.items():
        seen.clear()
        counted(small, card, gradient_checkpointing=False)
        chosen[name] = set(seen)
    assert chosen == {"T4": {"efficient"}, "A100": {"flash"}}


@pytest.mark.parametrize("card", [T4, A100], ids=["T4", "A100"])
def test_each_rung_takes_less(small, card):
    kept, again, away = (
        counted(small, card, gradient_checkpointing=a, offload=b)
        for a, b in ((False, False), (True, False), (False, True))
    )
    assert kept > 2 * again > 0 and kept > 2 * away > 0


@pytest.mark.parametrize(("model", "recomputed"), [("gemma-3n-e2b", 16), ("gemma-3n-e4b", 31)])
def test_the_plan_of_gemma_3n_on_a_t4(model, recomputed):
    """Part by part as docs/measured.md says, and within what a T4 has beside a CUDA context."""
    pytest.importorskip("timm")
    row = re.search(
        rf"^\| {model} \|(.*)\|$", (ROOT / "docs/measured.md").read_text(), re.MULTILINE
    )
    documented = [float(cell) for cell in row[1].split("|")]
    planned = t4_plan.asked(model).with_(
        precision="fp16",
        quantization="nf4",
        processes=1,
        micro_batch_size=8,
        micro_batch_tokens=1024,
        gradient_checkpointing=recomputed,
        offload=False,
    )
    found = t4_plan.parts(planned)
    assert list(found.values()) == pytest.approx(documented, rel=0.01, abs=0.01)
    assert found["total"] < 0.87 * T4_GIB
    answering = found["4-bit layers"] + found["embeddings, norms, 16 bits"]
    assert answering + found["answers, beside the weights"] < 0.87 * T4_GIB

"""Commands import what they need; what is postponed works as soon as it is used."""

import subprocess
import sys

import pytest
import yaml

from lorakit.common import postponed
from lorakit.machine.hardware import child_environment

# Nothing of this is needed for a model of text.
HEAVY = [
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.distributed.checkpoint",
    "torchvision.ops",
    "torchvision.models",
    "bitsandbytes",
    "scipy.optimize",
    "sklearn",
    "matplotlib",
    "triton",
    "trl",
    "wandb",
]


def python(code, *arguments):
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(unwanted, *command):
    """Those of these modules that a command has imported when it ends."""
    code = (
        "import sys; from lorakit.cli import main; main(sys.argv[2:]); "
        "print('\\nLOADED', *[m for m in sys.argv[1].split() if m in sys.modules])"
    )
    return python(code, " ".join(unwanted), *command).splitlines()[-1].split()[1:]


@pytest.fixture
def settings(tmp_path, rows_file, base):
    file = tmp_path / "run.yaml"
    content = {"data": rows_file, "model": base, "output_dir": str(tmp_path / "out")}
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_plan_imports_no_compiler_no_pictures_and_no_other_engine(settings):
    # PEFT is there to count a micro-batch, once for a model; what it imports by itself is not
    assert imported(HEAVY, "plan", settings) == []
    assert imported([*HEAVY, "peft"], "plan", settings) == []


def test_a_check_imports_no_torch(settings):
    assert imported([*HEAVY, "torch", "torchvision", "accelerate", "peft"], "check", settings) == []


def test_a_question_and_an_export_import_no_compiler(finished, tmp_path):
    assert imported([*HEAVY, "datasets"], "ask", finished.path, "abc?") == []
    assert (
        imported(HEAVY, "export", finished.path, "--to", "adapter", "--out", tmp_path / "a") == []
    )


def test_the_doctor_imports_no_compiler(tmp_path):
    assert imported(HEAVY, "doctor") == []


def test_what_is_postponed_works_when_it_is_used():
    code = """
import lorakit, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM, image_utils, masking_utils
from transformers.distributed import utils
from transformers.loss import loss_for_object_detection as detection
from transformers.utils import type_validators
with torch.device("meta"):
    model = LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, vocab_size=9))
assert not utils.is_dtensor(torch.ones(1))
assert not isinstance(torch.ones(1), torch.distributed.tensor.DTensor)
assert not hasattr(torch.distributed, "no_such_part")
late = [m for m in ("torch._dynamo", "torch.distributed.tensor", "torchvision.ops", "scipy.optimize")
        if m in sys.modules]
assert late == [], late

import torchvision
assert torchvision.ops.nms and torchvision.models.resnet18(weights=None).fc.out_features == 1000
assert image_utils.pil_torch_interpolation_mapping and image_utils.pil_to_tensor
assert torch.distributed.tensor.Replicate().is_replicate() and "torch.distributed.tensor" in sys.modules
rows, columns = detection.linear_sum_assignment([[4, 1], [2, 8]])
assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]
assert "silu" in type_validators.ACT2FN and "no such function" not in type_validators.ACT2FN
type_validators.resampling_validator(image_utils.PILImageResampling.BICUBIC)

masks = [masking_utils.sdpa_mask(batch_size=1, q_length=3, kv_length=3, use_vmap=v,
    allow_is_causal_skip=False, device="cpu") for v in (False, True)]
assert masks[0].tolist() == masks[1].tolist() == [[[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]]

model.tp_plan = {"layers.*.self_attn.q_proj": "colwise"}
try:
    model.tp_plan = {"layers.*.self_attn.q_proj": "no such style"}
except ValueError as error:
    assert "colwise" in str(error)
else:
    raise AssertionError
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
assert {"colwise", "grouped_gemm"} <= set(ALL_PARALLEL_STYLES.keys())

import torch._dynamo
from torch._dynamo import trace_rules
from transformers.integrations import deepgemm, finegrained_fp8
assert deepgemm.is_sm100._dynamo_marked_constant
marked = [f for f in vars(finegrained_fp8).values() if trace_rules.is_callable_allowed(f)]
assert marked
compiled = torch.compile(lambda x: torch.nn.functional.gelu(x) * 2, backend="eager", fullgraph=True)
assert torch.equal(compiled(torch.ones(3)), torch.nn.functional.gelu(torch.ones(3)) * 2)
print("done")
"""
    assert python(code).endswith("done\n")


def test_pictures_are_resized_as_without_it(tmp_path):
    code = """
import sys
if sys.argv[1] == "late":
    import lorakit
import torch
from PIL import Image
from transformers import ViTImageProcessor
processor = ViTImageProcessor(size={"height": 24, "width": 24})
picture = Image.linear_gradient("L").convert("RGB")
print(type(processor).__mro__[1].__name__, processor(picture, return_tensors="pt")["pixel_values"].double().sum().item())
"""
    assert python(code, "late") == python(code, "plain")


def test_adapters_beside_four_bit_layers():
    code = """
import lorakit, sys, torch
import peft
assert "bitsandbytes" not in sys.modules
from peft.tuners.lora.bnb import Linear4bit
import bitsandbytes
model = torch.nn.Sequential(bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4")).to("cpu")
model.is_loaded_in_4bit = True
adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"]))
assert type(adapted.base_model.model[0]) is Linear4bit, type(adapted.base_model.model[0])
assert adapted(torch.ones(1, 64)).shape == (1, 64)
print("done")
"""
    assert python(code) == "done\n"


def test_a_stand_in_is_no_answer_for_what_is_not_there():
    with postponed.stand_ins({"no_such_package": ["a"]}), pytest.raises(ImportError):
        import no_such_package  # noqa: F401
    with postponed.stand_ins({"sqlite3.dump": ["_iterdump"]}), pytest.raises(ImportError):
        from sqlite3.dump import no_such_name  # noqa: F401

"""Small base models and their tokenizers."""

import json
from pathlib import Path

import numpy as np

ROLES = ("system", "user", "assistant")


SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>", *(f"<|{role}|>" for role in ROLES)]


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer():
    """256 bytes and six special tokens, no merges: one byte = one id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=SPECIAL[3:],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save_base(folder, config, seed=0):
    """A model of random weights with the byte tokenizer, saved as if it were a download."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def distance(one, two):
    """How far two arrays are from each other, as a share of the second's length."""
    return np.linalg.norm(one - two) / np.linalg.norm(two)


def mxfp4(gpt_oss, folder):
    """The same base with its experts as the hub has them: (E, out, in / 32, 16) blocks of two 4-bit floats a byte and
    their scales, arXiv 2310.10537; and a plain one that holds what they stand for, by transformers' own reading."""
    import torch
    from safetensors.numpy import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng, content = np.random.default_rng(0), load_file(Path(gpt_oss) / "model.safetensors")
    packed, plain = dict(content), dict(content)
    for name, weight in content.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, width, out = weight.shape
            blocks = rng.integers(0, 256, (experts, out, width // 32, 16), dtype=np.uint8)
            scales = rng.integers(118, 123, (experts, out, width // 32), dtype=np.uint8)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            del packed[name]
            plain[name] = (
                convert_moe_packed_tensors(
                    torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32
                )
                .contiguous()
                .numpy()
            )
    said = json.loads((Path(gpt_oss) / "config.json").read_text())
    mark = {
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn"],
        }
    }
    for part, content, more in (("packed", packed, mark), ("plain", plain, {})):
        (folder / part).mkdir()
        save_file(content, folder / part / "model.safetensors", {"format": "pt"})
        (folder / part / "config.json").write_text(json.dumps(said | more))
        byte_tokenizer().save_pretrained(folder / part)
    return folder / "packed", folder / "plain"

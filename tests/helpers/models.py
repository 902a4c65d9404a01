"""Small base models and their tokenizers."""

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

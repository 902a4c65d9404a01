"""What several test files share: a tiny base model, built here, and the folder of real data."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a shared machine swings with more
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest

ROLES = ("system", "user", "assistant")
SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>", *(f"<|{role}|>" for role in ROLES)]
TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def byte_tokenizer():
    """256 bytes and six special tokens, no merges: one byte = one id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|begin|>", eos_token="<|end|>",
                                        pad_token="<|pad|>", extra_special_tokens=SPECIAL[3:])
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


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a Llama of two layers, 300 tokens, random weights."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1, tie_word_embeddings=False,
        bos_token_id=256, eos_token_id=257, pad_token_id=258)
    return save_base(tmp_path_factory.mktemp("base"), config)


def pytest_collection_modifyitems(items):
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def real_data():
    """The folder of public files; tests that use it carry the marker `real` by themselves."""
    folder = Path(os.environ.get("LORAKIT_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; set LORAKIT_TEST_DATA")
    return folder.resolve()

"""Phi-3-mini: one fused matrix for queries, keys and values, one for gate and up (arXiv 2404.14219)."""

from lorakit.models.spec import Spec

SPEC = Spec(
    name="phi-3-mini",
    path="microsoft/Phi-3-mini-4k-instruct",
    licence="MIT",
    target_modules=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    source="https://huggingface.co/microsoft/Phi-3-mini-4k-instruct",
    template="phi3",
    config={
        "model_type": "phi3",
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
    },
    small={"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2},
)

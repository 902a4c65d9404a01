"""Mistral 7B, version 0.3: 32,768 tokens, no window (arXiv 2310.06825 tells of the first version)."""

from lorakit.models.spec import GATED, Spec

SPEC = Spec(
    name="mistral-7b",
    path="mistralai/Mistral-7B-Instruct-v0.3",
    licence="Apache-2.0",
    target_modules=GATED,
    source="https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.3",
    config={
        "model_type": "mistral",
        "vocab_size": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    small={"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 16},
)

"""Qwen3, dense: queries and keys are normalized per head (arXiv 2505.09388). The template drops old thoughts."""

from lorakit.models.spec import GATED, Spec

SPEC = Spec(
    name="qwen3-{size}",
    path="Qwen/Qwen3-{size}",
    licence="Apache-2.0",
    target_modules=GATED,
    source="https://huggingface.co/Qwen/Qwen3-8B",
    template="qwen3",
    config={
        "model_type": "qwen3",
        "vocab_size": 151936,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    small={
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "layer_types": ["full_attention"] * 2,
    },
    sizes={
        "0.6B": {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        },
        "1.7B": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        },
        "4B": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
        },
        "8B": {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
    },
)

"""Llama 3.2, for text: input and output embeddings are one matrix, positions are scaled (arXiv 2407.21783)."""

from lorakit.models.spec import GATED, Spec

SPEC = Spec(
    name="llama-3.2-{size}",
    path="meta-llama/Llama-3.2-{size}-Instruct",
    licence="Llama 3.2 Community License (accepted on the model's page)",
    target_modules=GATED,
    source="https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct",
    template="llama3_2",
    config={
        "model_type": "llama",
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    small={"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 16},
    sizes={
        "1B": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "head_dim": 64,
        },
        "3B": {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "head_dim": 128,
        },
    },
)

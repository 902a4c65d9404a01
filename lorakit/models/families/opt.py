"""OPT: learned positions, biases, ReLU, no chat template (arXiv 2205.01068)."""

from lorakit.models.spec import Spec

SPEC = Spec(
    name="opt-{size}",
    path="facebook/opt-{size}",
    licence="OPT License Agreement (research, not for commercial use)",
    target_modules=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    source="https://huggingface.co/facebook/opt-1.3b",
    config={
        "model_type": "opt",
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    small={"hidden_size": 96, "word_embed_proj_dim": 96, "ffn_dim": 256, "num_hidden_layers": 2},
    sizes={
        "125m": {
            "hidden_size": 768,
            "word_embed_proj_dim": 768,
            "ffn_dim": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        "1.3b": {
            "hidden_size": 2048,
            "word_embed_proj_dim": 2048,
            "ffn_dim": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
        },
    },
)

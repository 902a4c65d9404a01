"""DistilBERT (arXiv 1910.01108): an encoder that reads both ways, six layers; for classes of texts."""

from lorakit.models.spec import Spec

SPEC = Spec(
    name="distilbert",
    path="distilbert/distilbert-base-uncased",
    licence="Apache-2.0",
    target_modules=r".*\.((q|k|v|out)_lin|[qkvo]_proj)",  # as transformers called them, and calls them now
    source="https://huggingface.co/distilbert/distilbert-base-uncased",
    config={
        "model_type": "distilbert",
        "vocab_size": 30522,
        "dim": 768,
        "hidden_dim": 3072,
        "n_layers": 6,
        "n_heads": 12,
        "max_position_embeddings": 512,
    },
    small={"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
)

"""Swin Transformer (arXiv 2103.14030): attention in windows that shift, patches merged stage by stage; for classes."""

from lorakit.models.families import vit
from lorakit.models.spec import Spec

SPEC = Spec(
    name="swin-tiny",
    path="microsoft/swin-tiny-patch4-window7-224",
    licence="Apache-2.0",
    target_modules=r".*\.(query|value|q_proj|v_proj)",  # as transformers called them, and calls them now
    source="https://huggingface.co/microsoft/swin-tiny-patch4-window7-224",
    config={
        "model_type": "swin",
        "image_size": 224,
        "patch_size": 4,
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
    },
    small={
        "image_size": 64,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    reader=vit.reader,
)

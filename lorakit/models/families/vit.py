"""Vision Transformer (arXiv 2010.11929): a picture as patches of 16 × 16 pixels; for classes."""

from lorakit.models.spec import Spec, image_processor


def reader(tokenizer, config):
    size = {"height": config["image_size"], "width": config["image_size"]}
    return image_processor("ViTImageProcessor", size=size)


SPEC = Spec(
    name="vit-{size}",
    path="google/vit-{size}-patch16-224-in21k",
    licence="Apache-2.0",
    target_modules=r".*\.(query|value|q_proj|v_proj)",  # as transformers called them, and calls them now
    source="https://huggingface.co/google/vit-base-patch16-224-in21k",
    config={"model_type": "vit", "image_size": 224, "patch_size": 16},
    small={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "image_size": 64,
        "patch_size": 8,
    },
    reader=reader,
    sizes={
        "base": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        "large": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
    },
)

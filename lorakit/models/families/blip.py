"""BLIP (arXiv 2201.12086): an image tower and a text decoder that looks at it; captions without being asked."""

from lorakit.models.spec import Spec, image_processor


def reader(tokenizer, config):
    from transformers import BlipProcessor

    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    tokenizer.chat_template = None
    size = config["vision_config"]["image_size"]
    config["text_config"] |= {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return BlipProcessor(
        image_processor("BlipImageProcessor", size={"height": size, "width": size}), tokenizer
    )


SPEC = Spec(
    name="blip-base",
    path="Salesforce/blip-image-captioning-base",
    licence="BSD-3-Clause",
    target_modules=r"text_decoder\..*\.(query|key|value|dense)",
    drops_last=True,
    source="https://huggingface.co/Salesforce/blip-image-captioning-base",
    config={
        "model_type": "blip",
        "text_config": {
            "model_type": "blip_text_model",
            "vocab_size": 30524,
            "hidden_size": 768,
            "encoder_hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        "vision_config": {
            "model_type": "blip_vision_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 384,
        },
    },
    small={
        "text_config": {
            "hidden_size": 64,
            "encoder_hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "initializer_range": 0.02,
        },
    },
    reader=reader,
)

"""Small encoders with the properties of real checkpoints: no head, and tokenizers without an end-of-sequence token."""

from pathlib import Path

import torch

WORDS = "water food help sun wind rain road clinic school bridge the is in a no we need".split()


def wordpiece():
    """BERT's kind: [CLS] … [SEP], lower case, no BOS, no EOS; its file truncates and pads, as MiniLM's does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [c for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = [
        *special,
        *letters,
        *(f"##{c}" for c in letters),
        *(w for w in WORDS if len(w) > 1),
    ]
    raw = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    raw.enable_truncation(16)
    raw.enable_padding(length=16, pad_id=0, pad_token="[PAD]")
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def sentencepiece_like():
    """RoBERTa's kind: <s> … </s>, both named BOS and EOS, and positions that begin after the padding's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({w: i for i, w in enumerate([*special, *letters])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_max_length=62,
    )


def saved(kind: str, folder: Path) -> str:
    """A bare encoder of random weights under `folder`: `bert`, `distilbert` or `roberta`, as the hub's checkpoints are:
    the base without any head, 64 positions."""
    from transformers import AutoConfig, AutoModel

    tokenizer = sentencepiece_like() if kind == "roberta" else wordpiece()
    shape = (
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
        if kind == "distilbert"
        else {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
    )
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
        **shape,
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)

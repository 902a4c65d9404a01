"""What is known of each model: real sizes, a small copy that trains, and adapters where they belong."""

import numpy as np
import pytest

import lorakit
from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.models import base_model, served
from lorakit.models import spec as models
from lorakit.models.spec import Spec
from lorakit.notebook.rehearse import stand_in
from lorakit.tasks.batches import Batches
from lorakit.training.loop import State, train

KNOWN = {name: spec for name, spec in models.known().items() if spec.config}
WEIGHTS = {  # as published; input and output embeddings count once where they are one matrix
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 4_300_079_472,
    "gemma-3n-e2b": 5_439_438_272,
    "gemma-3n-e4b": 7_849_978_192,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-20b-nf4": 20_914_757_184,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_248_023_552,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "phi-3-mini": 3_821_079_552,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}
SEEING_AND_HEARING = {  # as transformers builds them; of a classifier without its head, which is new
    "blip-base": 223_971_644,
    "distilbert": 66_362_880,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "smolvlm-256m": 256_484_928,
    "smolvlm-500m": 507_482_304,
    "swin-tiny": 27_519_354,
    "vit-base": 85_798_656,
    "vit-large": 303_301_632,
    "whisper-tiny": 37_760_640,
    "whisper-base": 72_593_920,
    "whisper-small": 241_734_912,
    "whisper-medium": 763_857_920,
}
# transformers does not build the keys and values (2 × 512 × 2048, and a norm of 256) of Gemma 3n's last 10 or 15
# layers, which nothing reads.
UNREAD = 2 * 512 * 2048 + 256
ELSEWHERE = {"gemma-3n-e2b": 10 * UNREAD, "gemma-3n-e4b": 15 * UNREAD}
each_model = pytest.mark.parametrize("name", WEIGHTS)
every_model = pytest.mark.parametrize("name", KNOWN)


def skeleton(config):
    """The model without memory for its weights."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.for_model(**config)
    with torch.device("meta"):
        return served.maker("auto", config, "").from_config(config)


def linear(model):
    import torch

    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def test_every_model_has_its_published_size():
    assert KNOWN.keys() == WEIGHTS.keys() | SEEING_AND_HEARING.keys()


@each_model
def test_the_real_dimensions_add_up(name):
    assert skeleton(KNOWN[name].config).num_parameters() + ELSEWHERE.get(name, 0) == WEIGHTS[name]


@pytest.mark.parametrize("name", SEEING_AND_HEARING)
def test_the_real_dimensions_of_those_that_see_and_hear_add_up(name):
    model = skeleton(KNOWN[name].config)
    heads = ("classifier", "pre_classifier") if hasattr(model, "classifier") else ()
    new = sum(
        p.numel()
        for head in heads
        if hasattr(model, head)
        for p in getattr(model, head).parameters()
    )
    assert model.num_parameters() - new == SEEING_AND_HEARING[name]


@every_model
def test_the_facts_are_complete(name):
    spec = KNOWN[name]
    assert "{" not in spec.path + spec.name and spec.name == name == name.lower()
    assert (
        spec.licence != Spec.licence
        and spec.source.startswith("https://")
        and spec.small
        and not spec.sizes
    )
    assert spec.fp16 == (not name.startswith(("gemma-3", "gpt-oss")))


@each_model
def test_the_small_copy_keeps_the_architecture(name):
    from transformers import AutoConfig

    spec = KNOWN[name]
    real, small = (
        AutoConfig.for_model(**config)
        for config in (spec.config, models.shrunk(spec.config, spec.small))
    )
    assert type(small) is type(real) and small.tie_word_embeddings == real.tie_word_embeddings
    real, small = real.get_text_config(), small.get_text_config()

    def shared(config):
        return config.num_attention_heads // (
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        )

    assert shared(small) == shared(real) and small.num_hidden_layers in (2, 4)
    assert set(getattr(small, "layer_types", None) or []) == set(
        getattr(real, "layer_types", None) or []
    )
    for kept in (
        "rope_parameters",
        "altup_num_inputs",
        "max_position_embeddings",
        "attention_bias",
    ):
        assert getattr(small, kept, None) == getattr(real, kept, None)
    for some in (
        "num_local_experts",
        "num_experts_per_tok",
        "hidden_size_per_layer_input",
        "num_kv_shared_layers",
        "sliding_window",
    ):
        assert bool(getattr(small, some, None)) == bool(getattr(real, some, None)), some


@each_model
def test_adapters_sit_in_every_block_of_the_language_model_alone(name):
    spec = KNOWN[name]
    model = skeleton(spec.config)
    chosen = [n for n in linear(model) if models.adapts(spec.target_modules, n)]
    blocks = {".".join(n.split(".")[: n.split(".").index("layers") + 2]) for n in chosen}
    assert len(blocks) == model.config.get_text_config().num_hidden_layers
    assert not [n for n in chosen if "vision" in n or "audio" in n or "lm_head" in n]


def test_a_bare_suffix_would_match_the_towers():
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        tower = AutoModel.from_config(AutoConfig.for_model("gemma3n_audio"))
    sound = [f"model.audio_tower.{n}" for n in linear(tower)]
    images = [n for n in linear(skeleton(KNOWN["gemma-3-4b"].config)) if "vision_tower" in n]
    language = "model.language_model.layers.3.self_attn.k_proj"
    for name, tower in (("gemma-3n-e2b", sound), ("gemma-3-4b", images)):
        assert [n for n in tower if models.adapts(["k_proj"], n)]
        assert [n for n in [*tower, language] if models.adapts(KNOWN[name].target_modules, n)] == [
            language
        ]


def test_adapts_is_what_peft_does():
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    layers = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "q_proj",
        "seq_proj",
        "lm_head",
    ]
    for targets in (["q_proj"], ["mlp.up_proj", "lm_head"], r".*\.q_proj", r"model\.layers\.0\..*"):
        theirs = [
            bool(check_target_module_exists(LoraConfig(target_modules=targets), n)) for n in layers
        ]
        assert [models.adapts(targets, n) for n in layers] == theirs and any(theirs)


@pytest.mark.slow
@each_model
def test_the_small_copy_trains_and_everything_expected_moves(name, tmp_path):
    """Forward, backward, two updates: what `SPEC` names has changed, nothing frozen has."""
    folder, _ = stand_in(name, tmp_path)
    run = lorakit.Run(
        data="-",
        model=folder,
        name=name,
        precision="fp32",
        quantization="none",
        max_length=64,
        rank=4,
        global_batch_size=2,
        micro_batch_size=2,
        micro_batch_tokens=128,
        gradient_checkpointing=False,
    )
    engine = registry.load("engines", "torch").load(run)
    before = engine.fingerprint()
    rows = [
        {"ids": [*range(9 + n, 79 + n, 3)], "targets": [False] * 4 + [True] * 20} for n in range(4)
    ]
    batches = Batches(
        rows,
        np.full(4, 24),
        global_batch_size=2,
        packing=engine.packing,
        seed=0,
        micro_batch_size=2,
        micro_batch_tokens=128,
        epochs=1,
    )
    lines = []
    train(engine, batches, State(), lambda update: 1e-3, lambda state, line: lines.append(line))
    assert len(lines) == 2 and all(0 < line["loss"] < 20 for line in lines)
    after = engine.fingerprint()
    assert {n for n in after if after[n] != before[n]} == {
        f"base_model.model.{n}.lora_{x}.default.weight"
        for n in linear(skeleton(base_model.config(folder).to_dict()))
        if models.adapts(KNOWN[name].target_modules, n)
        for x in "AB"
    }
    engine.close()


# Names


def test_a_name_and_a_hub_id_mean_the_same():
    for name, spec in models.known().items():
        assert base_model.spec(name) == base_model.spec(spec.path) == spec
    assert base_model.spec("qwen3-0.6b").path == "Qwen/Qwen3-0.6B"
    assert base_model.spec("llama-3.2-3b").config["rope_parameters"]["factor"] == 32
    assert base_model.spec("gemma-3-4b").config["text_config"]["hidden_size"] == 2560


def test_an_unknown_name_lists_those_that_users_type():
    with pytest.raises(
        LorakitError,
        match=r"model='qwen3-0.5b': no such folder, and not a hub id \(owner/name\)\. "
        r"Known by name: blip-base, .*, tiny, .*; did you mean 'qwen3-0.6b'\?",
    ):
        base_model.path("qwen3-0.5b")


@pytest.mark.parametrize(
    ("config", "fp16", "targets"),
    [
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
            False,
            KNOWN["gemma-3-4b"].target_modules,
        ),
        (
            {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}},
            False,
            KNOWN["gemma-3n-e2b"].target_modules,
        ),
        ({"model_type": "gpt_oss"}, False, ("q_proj", "k_proj", "v_proj", "o_proj")),
        ({"model_type": "phi3"}, True, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
        ({"model_type": "bloom"}, True, "all-linear"),
        ([], True, "all-linear"),
    ],
)
def test_an_attached_folder_is_treated_as_its_family(config, fp16, targets, tmp_path):
    import json

    (tmp_path / "config.json").write_text(json.dumps(config))
    found = base_model.spec(str(tmp_path))
    assert (found.fp16, found.target_modules, found.path) == (fp16, targets, str(tmp_path))
    assert found.licence == Spec.licence and found.config == {}


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        (None, ""),  # 16 bits
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4"),
        ({"mode": "mxfp4", "bits": 4, "group_size": 32}, "mxfp4"),  # as mlx-lm writes it
        ({"mode": "affine", "bits": 4, "group_size": 64}, ""),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "nf4",
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ""),
    ],
)
def test_how_a_folders_weights_are_stored_is_what_its_config_says(said, stored, tmp_path):
    """Of gpt-oss the hub has several forms; a copy in 16 bits can still be quantized."""
    import json

    from lorakit.planning import choose

    for kind, expected in (("gpt_oss", stored), ("llama", "")):
        content = {"model_type": kind, "quantization_config": said}
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v}))
        assert base_model.spec(str(tmp_path)).stored == expected
    found = models.family({"model_type": "gpt_oss", "quantization_config": said}, str(tmp_path))
    assert not found.fp16 and found.target_modules == KNOWN["gpt-oss-20b"].target_modules
    run = lorakit.Run(data="-", model=str(tmp_path), quantization="nf4")
    if stored:
        with pytest.raises(
            LorakitError, match=f"are stored as {stored} already and cannot be quantized again"
        ):
            choose.quantization(run, None, found)
    else:
        assert choose.quantization(run, None, found) == ("nf4", "asked for")


def test_what_is_shared_by_a_family_and_what_is_not():
    one = Spec(
        name="a-{size}",
        path="o/A-{size}",
        config={"x": 1, "deep": {"y": 2, "z": 3}},
        sizes={"1B": {"deep": {"y": 4}}, "2B": {"x": 5}},
    )
    assert {n: (s.path, s.config) for n, s in one.each().items()} == {
        "a-1b": ("o/A-1B", {"x": 1, "deep": {"y": 4, "z": 3}}),
        "a-2b": ("o/A-2B", {"x": 5, "deep": {"y": 2, "z": 3}}),
    }


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ((32, 32), (2, 2)),
        ((16, 8), (4, 2)),
        ((24, 8), (3, 1)),
        ((32, 8), (4, 1)),
        ((64, 8), (8, 1)),
        ((12, None), (2, None)),
    ],
)
def test_as_many_query_heads_share_a_key_head(heads, expected):
    config = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "hidden_size": 4096}
    assert models.shrunk(config, {"hidden_size": 96}) == {
        "num_attention_heads": expected[0],
        "num_key_value_heads": expected[1],
        "hidden_size": 96,
    }
    assert config["hidden_size"] == 4096

"""`added_tokens` and `rope_scaling`: a base with tokens of its own and more positions, to every export."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.endpoint import completion
from helpers.engines import SMALL, settings
from helpers.models import save_base
from helpers.paths import ROOT
from helpers.tuned import content, shrunken, tuned_run
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.exporting.round_trip import export
from lorakit.exporting.serve import serving
from lorakit.models import base_model, identity
from lorakit.models.derived import base_of, derived
from lorakit.planning.setup import setup
from lorakit.results.open_run import open_run
from lorakit.run import Run

TOKENS = ["<north>", "market"]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def small(tmp_path_factory, request):
    config = LlamaConfig(**{**SMALL, "vocab_size": 262}, tie_word_embeddings=request.param)
    return save_base(tmp_path_factory.mktemp("base"), config)


def test_a_token_begins_as_the_mean_of_its_pieces(small):
    run = settings(small, added_tokens=TOKENS)
    made = base_of(run)
    old, new = (AutoModelForCausalLM.from_pretrained(p) for p in (small, made.path))
    plain, extended = (AutoTokenizer.from_pretrained(p) for p in (small, made.path))
    assert extended("a<north>market", add_special_tokens=False)["input_ids"][1:] == [262, 263]
    assert extended.decode([262, 263], skip_special_tokens=True) == "<north>market"
    for before, after in (
        (old.get_input_embeddings(), new.get_input_embeddings()),
        (old.get_output_embeddings(), new.get_output_embeddings()),
    ):
        assert after.weight.shape[0] == 264
        torch.testing.assert_close(after.weight[:262], before.weight, rtol=0, atol=0)
        for row, token in ((262, TOKENS[0]), (263, TOKENS[1])):
            pieces = before.weight[plain(token, add_special_tokens=False)["input_ids"]]
            torch.testing.assert_close(after.weight[row], pieces.mean(0))
    assert new.config.tie_word_embeddings == old.config.tie_word_embeddings


def test_it_is_made_once_and_known_by_what_it_was_made_of(small, monkeypatch, tmp_path):
    run = settings(small, added_tokens=TOKENS)
    made = derived(run)
    assert derived(made) is made and derived(run).model == made.model != small
    known = identity.base(made.model)
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "empty"))
    elsewhere = derived(run).model
    assert elsewhere != made.model and identity.base(elsewhere) == known
    assert derived(settings(small)).model == small
    other = derived(settings(small, added_tokens=["<south>"])).model
    assert "weights" in identity.base(other).differences(known)


@pytest.mark.parametrize("token", ["<|end|>", "a"])
def test_a_token_that_exists_is_refused_by_name(small, token):
    with pytest.raises(
        LorakitError, match=f"has the token {token!r} already".replace("|", r"\|")
    ) as error:
        derived(settings(small, added_tokens=["<north>", token]))
    assert error.value.setting == "added_tokens"


@pytest.mark.parametrize("way", [lorakit.check, lorakit.prepare, setup])
def test_check_and_training_refuse_it_alike(small, way):
    run = settings(small, added_tokens=["<|end|>"], max_rows=40)
    with pytest.raises(LorakitError, match=r"has the token '<\|end\|>' already"):
        way(run.with_(data=str(ROOT / "data/triage.jsonl")))


@pytest.mark.parametrize(
    ("given", "kind"), [(2, "linear"), ({"linear": 2}, "linear"), ({"yarn": 2}, "yarn")]
)
def test_rope_is_scaled_as_transformers_does(small, given, kind):
    made = base_of(settings(small, rope_scaling=given))
    assert made.positions == 1024 and made.hash != base_model.of(small).hash
    scaled = {"rope_type": kind, "factor": 2.0}
    if kind == "yarn":
        scaled["original_max_position_embeddings"] = 512
    config = LlamaConfig.from_pretrained(small, max_position_embeddings=1024)
    config.rope_parameters = {**config.rope_parameters, **scaled}
    ids = torch.arange(40)[None]
    said = [
        AutoModelForCausalLM.from_pretrained(p, **more)(ids).logits
        for p, more in ((made.path, {}), (small, {"config": config}), (small, {}))
    ]
    torch.testing.assert_close(said[0], said[1], rtol=0, atol=0)
    assert (said[0] - said[2]).abs().max() > 1e-3


def test_the_base_itself_is_left_alone(small):
    before = identity.base(small), Path(small, "config.json").read_text()
    derived(settings(small, rope_scaling=3, added_tokens=TOKENS))
    assert (identity.base(small), Path(small, "config.json").read_text()) == before


@pytest.mark.parametrize("more", [{}, {"n_positions": 512}])
def test_a_family_without_rope_is_refused(tmp_path, more):
    config = GPT2Config(vocab_size=262, n_embd=32, n_layer=1, n_head=2, eos_token_id=257, **more)
    base = save_base(tmp_path / "gpt2", config)
    with pytest.raises(LorakitError, match="is a gpt2, without RoPE") as error:
        derived(settings(base, rope_scaling=2))
    assert error.value.setting == "rope_scaling"


def test_a_base_that_is_scaled_already_is_refused(small, tmp_path):
    made = derived(settings(small, rope_scaling=2)).model
    with pytest.raises(LorakitError, match="has linear scaling already"):
        derived(settings(made, rope_scaling={"yarn": 2}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"added_tokens": ["<a>", "<a>"]}, "names one twice"),
        ({"added_tokens": [" "]}, "added_tokens"),
        ({"added_tokens": ["<a>"], "fake_quantization": "q8_0"}, "added_tokens=.*fake_quantization"),
        ({"added_tokens": ["<a>"], "quantization": "gguf"}, "added_tokens=.*quantization='gguf'"),
        ({"rope_scaling": {"yarn": 2, "linear": 2}}, "name one way"),
        ({"rope_scaling": 1}, "greater than 1"),
        ({"rope_scaling": {"cubic": 2}}, "'linear' or 'yarn'"),
        ({"rope_scaling": 2, "quantization": "gguf"}, "rope_scaling=.*quantization='gguf'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(given, words):
    with pytest.raises(LorakitError, match=words):
        Run(data="-", **given)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run on a tied base with two tokens and twice the positions, rows beyond the base's own. Only to be read."""
    folder = tmp_path_factory.mktemp("tuned")
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    base = shrunken(
        "llama",
        folder / "base",
        tie_word_embeddings=True,
        max_position_embeddings=128,
        rope_parameters=plain,
    )
    run = tuned_run(
        base, folder, added_tokens=TOKENS, rope_scaling={"yarn": 2}, max_updates=60, max_length=200
    )
    return run.path


@pytest.mark.slow
def test_trained_saved_and_opened_again_elsewhere(tuned, tmp_path, monkeypatch):
    said = lorakit.ask(tuned, ["north 0?", "market 7?"])
    assert Run.read(tuned / "run.yaml").model.endswith("/base")
    assert "made once" in json.loads((tuned / "record.json").read_text())["choices"]["base"][1]
    shutil.copytree(tuned.parent, tmp_path / "moved")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "empty"))
    moved = open_run(tmp_path / "moved" / tuned.name)
    assert len(moved.tokenizer.encode("market", add_special_tokens=False)) == 1
    assert lorakit.ask(moved.folder.path, ["north 0?", "market 7?"]) == said
    table = "base_model.model.model.embed_tokens.weight"
    from safetensors.torch import load_file

    before = AutoModelForCausalLM.from_pretrained(moved.run.model).get_input_embeddings().weight
    trained = load_file(moved.saved / "adapter_model.safetensors")[table]
    number = moved.tokenizer.convert_tokens_to_ids("market")
    assert trained.shape == before.shape and (trained[number] - before[number]).abs().max() > 1e-4


@pytest.mark.slow
def test_a_server_answers_as_ask_does(tuned, tmp_path, here):
    path, asked = tmp_path / "served", ["north 0?", "market 7?", "<north> market?"]
    shutil.copytree(tuned, path)
    said = lorakit.ask(path, asked)
    with serving(path) as (address, model):
        choices = [completion(address, model, question, max_tokens=12) for question in asked]
    assert [choice["message"]["content"] for choice in choices] == said
    assert any("market" in answer for answer in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "type_"), [("merged", "fp32"), ("gguf", "f32"), ("onnx", "fp32"), ("mlx", "fp32")]
)
def test_both_survive_every_export(tuned, tmp_path, here, target, type_):
    out = export(tuned, target, tmp_path / "out", type=type_)
    found = content(out)
    assert found["divergence"]["own_rows"]["nats"] < 1e-4
    assert found["agreement"]["identical"] == found["agreement"]["prompts"]
    if (out / "config.json").is_file():
        config = json.loads((out / "config.json").read_text())
        assert config["max_position_embeddings"] == 256

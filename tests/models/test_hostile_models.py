"""Model folders that were made to harm: code of their own, endless templates, sizes that fill the memory."""

import contextlib
import json
import shutil

import pytest
from helpers.models import byte_tokenizer

from lorakit.common.errors import LorakitError
from lorakit.models import base_model, reading, safety


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "model")


def change(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def test_code_of_a_model_is_refused_at_once_and_never_runs(folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(LorakitError):
        base_model.config(str(folder))
    assert not (tmp_path / "ran").exists()


def test_code_of_a_tokenizer_never_runs(folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    )
    with contextlib.suppress(LorakitError):
        reading.tokenizer(str(folder))
    assert not (tmp_path / "ran").exists()


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HUGE = "{{ 'a' * 3000000000 }}"
DOUBLING = "{% set n = namespace(s='aaaaaaaa') %}{% for a in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"


POWER = "{% set n = messages | length %}{% if n > 2 %}{{ (n + 9) ** n ** 9 }}{% endif %}"


@pytest.mark.parametrize("template", [ENDLESS, HUGE, DOUBLING, POWER])
def test_a_template_without_end_is_refused(template, folder, monkeypatch):
    monkeypatch.setattr(safety, "SECONDS", 1)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    with pytest.raises(LorakitError) as refused:
        reading.tokenizer(str(folder))
    assert refused.value.setting == "model" and "chat template" in refused.value.message
    assert refused.value.cure


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{% break %}{% endfor %}{{ strftime_now('%Y') }}{{ messages | tojson }}",
        "{{ broken",
    ],
)
def test_what_ends_is_not_refused_here(template):
    safety.check_template(template, "m")


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1e30),
        ("vocab_size", 10**10),
        ("hidden_size", -1),
        ("encoder_layers", 10**6),
        ("rows_of_the_table", 10**12),  # a name that nobody knows
        ("depths", [2, 2, 10**7, 2]),
        ("depths", [1999] * 100),
        ("hidden_size", [64, 10**12]),
        ("vision_config", {"stages": [{"blocks": [3, 10**12]}]}),
        ("num_key_value_heads", {"0": {"num_heads": 10**9}}),
        ("text_config", {"num_hidden_layers": 1000, "n_routed_experts": 19_000}),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_built(name, value, folder):
    change(folder / "config.json", **{name: value})
    with pytest.raises(LorakitError) as refused:
        base_model.config(str(folder))
    assert "which no model has" in refused.value.message
    assert refused.value.where.endswith("config.json")


def test_a_configuration_of_megabytes_or_of_many_levels_is_refused(folder):
    path = folder / "config.json"
    plain = path.read_text()
    path.write_text('{"a": ' * 5000 + "1" + "}" * 5000)
    with pytest.raises(LorakitError):
        base_model.config(str(folder))
    with open(path, "w") as file:
        file.write(plain)
        file.truncate(safety.LARGEST_CONFIG + 1)
    with pytest.raises(LorakitError, match="config.json has 16 MB, which no model has"):
        base_model.config(str(folder))


@pytest.mark.slow
def test_no_configuration_that_transformers_knows_is_refused(tmp_path):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    checked = 0
    for name in CONFIG_MAPPING:
        try:
            content = CONFIG_MAPPING[name]().to_json_string(use_diff=False)
        except Exception:  # one that cannot be made without arguments, or needs a missing package
            continue
        (tmp_path / "config.json").write_text(content)
        safety.refuse_sizes(name, tmp_path)
        checked += 1
    assert checked > 300


def test_a_tokenizer_of_gigabytes_is_refused_unread(folder):
    with open(folder / "tokenizer.json", "r+b") as file:
        file.truncate(safety.LARGEST_TOKENIZER + 1)  # a sparse file
    with pytest.raises(LorakitError, match="MB, which no model has"):
        base_model.config(str(folder))


def test_pickled_weights_are_loaded_by_an_explicit_setting_alone(tmp_path, base, rows_file):
    import shutil

    import torch
    from helpers.runs import tiny_run
    from safetensors.torch import load_file

    from lorakit.planning.setup import preflight

    folder = shutil.copytree(base, tmp_path / "bin")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    run = tiny_run(str(folder), rows_file, tmp_path)
    preflight(run)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LorakitError, match="pickle files") as found:
        preflight(run)
    assert found.value.setting == "pickled_weights" and "pickled_weights: true" in found.value.cure
    preflight(run.with_(pickled_weights=True))


def test_an_index_that_names_weights_outside_of_its_folder_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "../x.safetensors"}})
    )
    with pytest.raises(LorakitError, match=r"outside of its folder: \.\./x"):
        safety.refuse_weights("m", tmp_path, True)


@pytest.mark.parametrize("name", ["../../ESCAPED", "/etc/x", ".hidden", "a/b", ""])
def test_a_template_named_like_a_path_is_refused(name):
    import types

    tokenizer = types.SimpleNamespace(chat_template={"default": "x", name: "y"})
    with pytest.raises(LorakitError, match="which is a path and no name"):
        safety.check_template_names(tokenizer, "m")
    safety.check_template_names(types.SimpleNamespace(chat_template={"tool_use": "x"}), "m")


def test_weights_that_are_not_finite_are_refused_by_name(folder):
    from safetensors.torch import load_file, save_file

    from lorakit.engines.torch.loading import require_finite
    from lorakit.models.merge import unquantized_model

    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.input_layernorm.weight"
    save_file(
        {**weights, name: weights[name] * float("nan")},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(
        LorakitError, match=r"'model\.layers\.1\.input_layernorm\.weight' holds numbers"
    ) as found:
        require_finite(unquantized_model(str(folder), task="chat"), str(folder))
    assert found.value.setting == "model"

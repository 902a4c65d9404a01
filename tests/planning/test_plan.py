"""What is chosen on which machine, from recorded facts; and what happens when memory runs out all the same."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.machines import GB, H100, L4, P100, PACKAGES, RECORDED, RTX, T4, facts

import lorakit
from lorakit.engines.torch import load
from lorakit.engines.torch.layers import layers, recompute
from lorakit.engines.torch.losses import Losses
from lorakit.machine import hardware
from lorakit.planning import choose, doctor, ladder
from lorakit.runs.folder import Folder
from lorakit.tasks.batches import Batch

# device, processes, precision, tokens at a time
EXPECTED = {
    "Colab, T4": ("cuda", 1, "fp16", 4096),
    "Colab, L4": ("cuda", 1, "bf16", 4096),
    "Colab, A100": ("cuda", 1, "bf16", 16384),
    "Colab, CPU": ("cpu", 1, "fp32", 4096),
    "Kaggle, one T4": ("cuda", 1, "fp16", 4096),
    "Kaggle, two T4": ("cuda", 2, "fp16", 4096),
    "server, V100": ("cuda", 1, "fp16", 4096),
    "server, A10G": ("cuda", 1, "bf16", 4096),
    "server, eight H100": ("cuda", 8, "bf16", 16384),
    "server, H200": ("cuda", 1, "bf16", 16384),
    "desktop, RTX 5090": ("cuda", 1, "bf16", 4096),
    "mixed, T4 and L4": ("cuda", 2, "fp16", 4096),
    "Mac, 16 GB": ("mps", 1, "bf16", 4096),
    "server, CPU": ("cpu", 1, "fp32", 4096),
}


@pytest.mark.parametrize("name", RECORDED)
def test_choices(name, base):
    here, (device, processes, precision, tokens) = RECORDED[name], EXPECTED[name]
    run, choices = choose.resolve(lorakit.Run(data="-", model=base, max_length=512), here)
    assert here.device == device
    assert (run.processes, run.precision, run.micro_batch_tokens) == (processes, precision, tokens)
    assert (run.engine, run.quantization, run.gradient_checkpointing, run.offload) == (
        "torch",
        "none",
        False,
        False,
    )
    assert all(reason and isinstance(reason, str) for _, reason in choices.values())
    assert {"engine", "precision", "quantization", "processes", "output_dir"} <= set(choices)


def test_reasons_are_those_of_the_machine(base):
    def reason(here, name, **settings):
        return choose.resolve(lorakit.Run(data="-", model=base, **settings), here)[1][name][1]

    assert reason(facts(T4), "precision") == "Tesla T4 has no bf16 hardware"
    assert reason(facts(T4, T4), "processes") == "one for each of 2 cards"
    assert "mount Google Drive before" in reason(facts(T4, place="colab"), "output_dir")
    assert "Drive is mounted" in reason(facts(T4, place="colab", drive=True), "output_dir")
    assert "Kaggle keeps only /kaggle/working" in reason(facts(place="kaggle"), "output_dir")
    assert "kept with the notebook" in reason(
        facts(place="kaggle"), "output_dir", output_dir="/kaggle/working/outputs"
    )


def test_a_card_that_torch_was_not_built_for_is_refused(base):
    with pytest.raises(
        lorakit.LorakitError,
        match=r"torch 2\.13\.0 was not built for Tesla P100-PCIE-16GB \(sm_60\)",
    ):
        choose.resolve(lorakit.Run(data="-", model=base), facts(P100))
    (wrong,) = doctor.problems(facts(P100))
    assert "sm_60" in wrong["what"] and "P100 (sm_60) needs torch < 2.8" in wrong["cure"]
    assert not doctor.problems(facts(T4)) and P100.served(("sm_60",)) and P100.served(())
    assert RTX.served(("sm_80", "compute_90")) and not RTX.served(("sm_80", "sm_90"))


def test_the_ladder_goes_down_in_its_order(base):
    """Tokens at a time, then recomputing, then the host's memory; and what was set stays."""
    wanted = lorakit.Run(
        data="-", model=base, max_length=256, quantization="none", precision="fp32"
    )
    from lorakit.planning import memory

    seen = []
    for room in np.geomspace(3e9, 1e6, 60):
        run, _ = choose.resolve(wanted, facts(memory=int(room)))
        again = run.gradient_checkpointing if isinstance(run.gradient_checkpointing, bool) else 0.5
        rung = (again, run.offload, -run.micro_batch_tokens)
        seen += [rung] if rung not in seen else []
        if run.micro_batch_tokens > 256 or not run.offload:
            assert memory.memory(run)["total"] <= 0.85 * room
    assert (
        seen == sorted(seen) and seen[0] == (False, False, -4096) and seen[-1] == (True, True, -256)
    )
    run, _ = choose.resolve(
        wanted.with_(micro_batch_tokens=512, gradient_checkpointing=False), facts(memory=10**6)
    )
    assert (run.micro_batch_tokens, run.gradient_checkpointing) == (512, False)


def test_as_few_layers_as_it_takes_are_recomputed(base, monkeypatch):
    """Where every layer takes a tenth of 100 MB: of ten, three for a room of 71."""
    from lorakit.planning import memory

    takes = lambda run: int(1e8 - 1e7 * memory.recomputed(run, SHAPE) * 10)
    SHAPE = memory.Shape(1, 1, 1, layers=10, hidden=1, wide=1, vocabulary=1, widest=1)
    monkeypatch.setattr(memory, "shape", lambda run: SHAPE)
    monkeypatch.setattr(memory, "memory", lambda run, of=None, facts=None: {"total": takes(run)})
    wanted = lorakit.Run(
        data="-", model=base, max_length=256, quantization="none", precision="fp32"
    )
    for room, expected in ((101e6, False), (71e6, 3), (12e6, 9), (9e6, True)):
        run, choices = choose.resolve(wanted, facts(memory=int(room / 0.85) + 1))
        assert run.gradient_checkpointing is expected or run.gradient_checkpointing == expected > 1
    assert "may be used; without it" in choices["gradient_checkpointing"][1]


def test_recomputing_some_layers_changes_nothing(base):
    """Of two layers none, one, or both; out of memory, the rest recompute too."""
    run = lorakit.Run(
        model=base,
        data="-",
        engine="torch",
        precision="fp32",
        quantization="none",
        max_length=64,
        packing=True,
        micro_batch_size=8,
        micro_batch_tokens=512,
    )
    found = []
    for count in (False, 1, True):
        engine = load(run.with_(gradient_checkpointing=count))
        assert [layer.gradient_checkpointing for layer in layers(engine.model)] == [
            bool(count),
            count is True,
        ]
        engine.backward(documents(10, 20, 30))
        found.append(gradients(engine))
    for other in found[1:]:
        assert all(torch.equal(other[n], g) for n, g in found[0].items())
    assert recompute(engine.model, True) and all(
        layer.gradient_checkpointing for layer in layers(engine.model)
    )


def test_what_cannot_fit_is_refused_with_settings_that_would(base):
    run, _ = choose.resolve(
        lorakit.Run(data="-", model=base, max_length=512, rank=64), facts(memory=10**12)
    )
    from lorakit.planning import memory

    need = memory.memory(run)["total"]
    ladder.refuse(run, facts(memory=need))
    with pytest.raises(
        lorakit.LorakitError,
        match=r"are needed and .* are there, one row at a time; it would fit with "
        r".*max_length=",
    ):
        ladder.refuse(run, facts(memory=int(need * 0.9)))
    with pytest.raises(lorakit.LorakitError, match="take a smaller model"):
        ladder.refuse(run, facts(memory=1000))


def test_more_processes_than_cards_or_rows(base):
    with pytest.raises(lorakit.LorakitError, match="processes=3, and this machine has 2 cards"):
        choose.resolve(lorakit.Run(data="-", model=base, processes=3), facts(T4, T4))
    with pytest.raises(lorakit.LorakitError, match="processes=2 and global_batch_size=1: some"):
        choose.resolve(lorakit.Run(data="-", model=base, processes=2, global_batch_size=1), facts())
    assert choose.processes(lorakit.Run(data="-", global_batch_size=4), facts(*[H100] * 8))[0] == 4


@pytest.mark.parametrize(
    ("wanted", "left"),
    [(None, 2), ("", 0), ("1", 1), ("0,1", 2), ("0,7", 1), ("-1", 0), ("GPU-8d5c4a3e", 1)],
)
def test_visible_cards(wanted, left):
    assert len(hardware.visible([T4, L4], wanted)) == left


def test_facts_of_cards_need_no_cuda(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'Tesla T4, 15360, 7.5'\necho 'Tesla T4, 15360, 7.5'\necho 'No devices, [N/A], x'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.cards() == (T4, T4) and 15.4e9 < T4.memory < 15.7e9
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert hardware.facts().cards == (T4,)


def test_doctor_says_what_is_wrong_and_what_is_good_to_know():
    def words(found):
        return " | ".join(f"{f['what']} -> {f['cure']}" for f in found)

    assert (
        "has imported torch 2.11.0+cu126, and 2.13.0 is installed now -> restart the kernel"
        in words(doctor.problems(facts(replaced=(("torch", "2.11.0+cu126", "2.13.0"),))))
    )
    assert not doctor.problems(facts())
    assert "0.5 GB of disk" in words(doctor.problems(facts(disk_free=GB // 2)))
    assert doctor.remarks(facts(), True) == []
    assert "torch emulates it" in words(doctor.remarks(facts(T4, T4), True))
    assert "transformers 6.1.0 was not tested (tested: 5.0 to 5.24)" in words(
        doctor.remarks(facts(packages={**PACKAGES, "transformers": "6.1.0"}), True)
    )
    assert "Turn the internet on in the notebook's settings" in words(
        doctor.remarks(facts(place="kaggle"), False)
    )
    assert "drive.mount" in words(doctor.remarks(facts(place="colab"), None))


# Macs


def mac(gigabytes, **more):
    """An Apple chip with everything installed; memory as macOS says it, in GiB."""
    return facts(
        **{
            "place": "mac",
            "system": "Darwin arm64",
            "mps": True,
            "memory": gigabytes * 2**30,
            "packages": {**PACKAGES, "mlx": "0.32.4", "mlx-lm": "0.32.2"},
            **more,
        }
    )


# GiB -> GB that macOS lets the GPU hold, and gpt-oss-20b there: (recomputed, tokens at a time), None: refused
MACS = {
    16: (11.45, None),
    24: (17.18, (True, 512)),
    36: (28.99, (False, 512)),
    48: (38.65, (False, 1024)),
}


@pytest.mark.parametrize("size", MACS)
def test_gpt_oss_on_macs(size):
    """Its experts stay in MXFP4 (4.25 bits), the rest in 16: 13.76 GB, as the hub's files are."""
    pytest.importorskip("mlx_lm")
    from lorakit.planning import memory

    room, chosen = MACS[size]
    here = mac(size)
    wanted = lorakit.Run(
        data="-", model="gpt-oss-20b", target_modules=["q_proj", "v_proj"], rank=8, max_length=512
    )
    run, choices = choose.resolve(wanted, here)
    assert here.device_memory / 1e9 == pytest.approx(room, abs=0.01)
    assert (run.engine, run.precision) == ("mlx", "bf16") and choices["quantization"] == (
        "none",
        "its weights are stored as mxfp4",
    )
    assert memory.memory(run)["weights"] == 13_761_264_768
    if chosen is None:
        with pytest.raises(
            lorakit.LorakitError, match=r"16\.\d GB are needed and 11\.5 GB are there, .* smaller"
        ):
            ladder.refuse(run, here)
    else:
        ladder.refuse(run, here)
        assert (run.gradient_checkpointing, run.micro_batch_tokens) == chosen


def test_gpt_oss_on_a_t4():
    """In NF4, by the engine that reads it; its embeddings and head stay in 16 bits."""
    from lorakit.planning import memory

    wanted = lorakit.Run(
        data="-",
        model="gpt-oss-20b-nf4",
        target_modules=["q_proj", "v_proj"],
        rank=8,
        max_length=512,
    )
    here = facts(T4, packages={**PACKAGES, "unsloth": "2026.10.9"})
    run, choices = choose.resolve(wanted, here)
    assert (run.engine, run.precision) == ("unsloth", "fp32")
    assert choices["quantization"] == ("none", "its weights are stored as nf4")
    assert memory.memory(run)["weights"] == pytest.approx(12.5e9, rel=0.01)
    ladder.refuse(run, here)
    with pytest.raises(
        lorakit.LorakitError,
        match="torch: in gpt-oss-20b-nf4 each expert is a layer of its own, .*; "
        "unsloth: unsloth is not installed",
    ):
        choose.resolve(wanted, facts(T4))
    run, _ = choose.resolve(wanted.with_(model="gpt-oss-20b"), facts(T4))
    with pytest.raises(lorakit.LorakitError, match=r"GB are needed and 15\.6 GB are there"):
        ladder.refuse(run, facts(T4))


def test_what_a_mac_lets_its_gpu_hold_and_how_to_raise_it(base):
    assert mac(16).more == "sudo sysctl iogpu.wired_limit_mb=12288"
    assert mac(48).more == "sudo sysctl iogpu.wired_limit_mb=43008"
    assert (
        mac(16, gpu_memory=13 * 2**30).device_memory
        == 13 * 2**30
        == mac(16, gpu_memory=13 * 2**30).most_memory
    )
    assert mac(16, gpu_memory=13 * 2**30).more == "" == facts(T4).more == facts().more
    assert facts(memory=GB).device_memory == facts(memory=GB).most_memory == GB
    run, _ = choose.resolve(lorakit.Run(data="-", model=base, max_length=512), mac(64))
    from lorakit.planning import memory

    need = memory.memory(run)["total"]
    with pytest.raises(
        lorakit.LorakitError, match=r"or give the GPU more of this Mac's memory: sudo sysctl iogpu"
    ):
        ladder.refuse(run, mac(16, gpu_memory=int(need * 0.9)))


def test_the_second_choice_on_a_mac_says_why_the_first_does_not_serve(tmp_path):
    from helpers.models import save_base
    from transformers import AutoConfig

    other = save_base(
        tmp_path,
        AutoConfig.for_model(
            "opt",
            vocab_size=300,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            word_embed_proj_dim=32,
        ),
    )
    wanted = lorakit.Run(data="-", model=other, max_length=64)

    def choices(here):
        return choose.resolve(wanted, here)[1]

    pytest.importorskip("mlx_lm")
    found = choices(mac(24))
    assert found["engine"][0] == "torch" and found["engine"][1].startswith(
        "it serves mps (mlx: mlx-lm has no opt; "
    )
    assert found["precision"] == (
        "bf16",
        "half the memory of fp32 on Apple's GPU; what is trained stays fp32",
    )
    assert found["quantization"][0] == "none"
    assert choices(mac(24, gpu_memory=10**5))["quantization"][0] == "nf4"
    old = choices(
        mac(24, gpu_memory=10**5, packages={**mac(24).packages, "bitsandbytes": "0.49.1"})
    )
    assert old["quantization"][0] == "none" and old["quantization"][1].endswith(
        "nothing smaller is served here"
    )
    assert (
        "on the CPU: PYTORCH_ENABLE_MPS_FALLBACK is set"
        in choices(mac(24, mps_fallback=True))["engine"][1]
    )
    with pytest.raises(
        lorakit.LorakitError,
        match="optimizer='paged_adamw_8bit': bitsandbytes has none for Apple's",
    ):
        choose.resolve(wanted.with_(optimizer="paged_adamw_8bit"), mac(24))


def test_four_bits_on_apple_s_gpu_are_those_of_the_cpu(monkeypatch):
    """bitsandbytes' own code for that GPU, computed here: the codes, the scales and the products."""
    import importlib

    import bitsandbytes.functional as four
    from bitsandbytes import _ops

    calls = {}
    monkeypatch.setattr(
        _ops, "register_kernel", lambda name, device: lambda f: calls.setdefault(name[14:], f)
    )
    monkeypatch.delitem(sys.modules, "bitsandbytes.backends.mps.ops", raising=False)
    importlib.import_module("bitsandbytes.backends.mps.ops")
    torch.manual_seed(0)
    weight, x = torch.randn(256, 192), torch.randn(5, 192)
    codes, scales = calls["quantize_4bit"](weight, 64, "nf4", torch.uint8)
    expected, state = four.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=False
    )
    assert torch.equal(codes, expected) and torch.equal(scales, state.absmax)
    plain = four.dequantize_4bit(expected, state)
    assert torch.equal(
        calls["dequantize_4bit"](codes, scales, 64, "nf4", weight.shape, torch.float32), plain
    )
    assert torch.allclose(
        calls["gemm_4bit"](x, codes, weight.shape, scales, 64, "nf4"), x @ plain.T, atol=1e-5
    )


def test_what_a_mac_s_doctor_knows():
    def words(found):
        return " | ".join(f"{f['what']} -> {f['cure']}" for f in found)

    said = words(doctor.remarks(mac(24), True))
    assert (
        "macOS lets the GPU hold 17.2 of 25.8 GB -> For more, until the next start: sudo sysctl iogpu"
        in said
    )
    assert (
        "a Mac falls asleep during long runs -> Start them as: caffeinate -i lorakit train" in said
    )
    assert not doctor.problems(mac(24))
    assert "runs under Rosetta" in words(
        doctor.problems(mac(24, system="Darwin x86_64", mps=False, translated=True))
    )
    assert "does not reach Apple's GPU" in words(doctor.problems(mac(24, mps=False)))
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in words(doctor.problems(mac(24, mps_fallback=True)))


@pytest.mark.parametrize(
    ("answer", "said"), [("echo 1", True), ("echo 0", False), ("exit 1", False)]
)
def test_rosetta_is_asked_from_the_system(answer, said, monkeypatch, tmp_path):
    sysctl = tmp_path / "sysctl"
    sysctl.write_text(f'#!/bin/sh\n[ "$*" = "-n sysctl.proc_translated" ] && {answer}\n')
    sysctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert hardware.translated() is said


# When memory runs out all the same


def documents(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Batch(
        rng.integers(0, 256, n),
        np.arange(n) != starts,
        np.asarray(lengths),
        np.arange(len(lengths)),
        seed,
    )


@pytest.fixture
def engine(base):
    run, _ = choose.resolve(
        lorakit.Run(
            data="-",
            model=base,
            max_length=64,
            precision="fp32",
            quantization="none",
            micro_batch_tokens=256,
        ),
        facts(),
    )
    return load(run)


def scarce(engine, monkeypatch, tokens, checkpointing=False, offload=False):
    """Memory for so many tokens at a time, unless these rungs have been taken."""
    plain = engine.losses.summed

    def logits(batch):
        enough = (
            len(batch.ids) <= tokens and engine.model.is_gradient_checkpointing >= checkpointing
        )
        if engine.model.training and not (enough and engine.offload >= offload):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(batch)

    monkeypatch.setattr(engine.losses, "summed", logits)


def gradients(engine):
    return {n: p.grad.clone() for n, p in engine.trained.items()}


def test_parts_of_a_batch():
    whole = documents(10, 20, 5, 30)
    assert [list(p.lengths) for p in whole.parts(30)] == [[10, 20], [5], [30]]
    assert [list(p.lengths) for p in whole.parts(4)] == [[10], [20], [5], [30]]
    assert whole.parts(None) == [whole] and whole.parts(65) == [whole]
    parts = whole.parts(30)
    assert np.array_equal(np.concatenate([p.ids for p in parts]), whole.ids)
    assert sum(p.count for p in parts) == whole.count == 61
    assert [list(p.rows) for p in parts] == [[0, 1], [2], [3]]


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"tokens": 40}, ["at most 32 tokens at a time"]),
        (
            {"tokens": 40, "checkpointing": True},
            ["at most 12 tokens at a time", "activations recomputed"],
        ),
        (
            {"tokens": 40, "checkpointing": True, "offload": True},
            [
                "at most 12 tokens at a time",
                "activations recomputed",
                "activations kept in the host's memory",
            ],
        ),
    ],
)
def test_out_of_memory_changes_nothing_but_the_pieces(engine, monkeypatch, limits, steps):
    """The micro-batch before is not lost, nor counted twice: the gradients are those of the whole update."""
    first, second = documents(10, 12, seed=1), documents(10, 20, 5, 30, seed=2)
    losses = [engine.backward(b) for b in (first, second)]
    expected = gradients(engine)
    engine.optimization.drop_gradients()
    engine.pending.clear()
    scarce(engine, monkeypatch, **limits)
    again = [engine.backward(b) for b in (first, second)]
    assert engine.steps == steps
    assert [c for _, c in again] == [c for _, c in losses]
    assert [x for x, _ in again] == pytest.approx([x for x, _ in losses], rel=1e-6)
    for name, gradient in gradients(engine).items():
        assert torch.allclose(gradient, expected[name], atol=1e-7, rtol=1e-4), name
    engine.update(1e-3, first.count + second.count)
    assert engine.targets_trained == first.count + second.count and engine.pending == []


def test_out_of_memory_with_a_single_row_says_what_to_do(engine, monkeypatch):
    scarce(engine, monkeypatch, tokens=20)
    with pytest.raises(
        lorakit.LorakitError,
        match="out of memory with one row of 30 tokens, recomputed and offloaded; "
        "lower max_length or rank",
    ):
        engine.backward(documents(30, 10))


def test_out_of_memory_in_an_evaluation(engine, monkeypatch):
    whole, plain = documents(10, 20, 5, 30), engine.passes.hidden
    expected = engine.predict(whole)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    answers = engine.generate(prompts, 4, [257])

    def logits(batch):
        if len(batch.ids) > 30:
            raise torch.OutOfMemoryError
        return plain(batch)

    monkeypatch.setattr(engine.passes, "hidden", logits)
    assert np.allclose(engine.predict(whole), expected, rtol=1e-5)
    generate = engine.model.generate

    def scarcely(**options):
        if len(options["input_ids"]) > 1:
            raise torch.OutOfMemoryError
        return generate(**options)

    monkeypatch.setattr(engine.model, "generate", scarcely)
    assert engine.generate(prompts, 4, [257]) == answers
    with pytest.raises(lorakit.LorakitError, match="one row of 31 tokens; lower max_length"):
        engine.predict(documents(31))


@pytest.mark.slow
def test_a_run_that_runs_out_of_memory_ends_the_same_and_says_so(run, quick, monkeypatch):
    whole = lorakit.finetune(run.with_(name="whole", dropout=0.0))
    plain = Losses.summed

    def logits(self, batch):
        if self.passes.model.training and len(batch.ids) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, batch)

    monkeypatch.setattr(Losses, "summed", logits)
    folder = lorakit.finetune(run.with_(name="scarce", dropout=0.0))
    assert folder.record["status"] == "done" and folder.record["stepped_down"][0].startswith(
        "at most "
    )
    assert Folder(run.with_(name="whole").folder).record["stepped_down"] == []
    one, two = ([u["loss"] for u in f.history()[0]] for f in (whole, folder))
    assert one == pytest.approx(two, abs=1e-5)


def test_the_layer_that_overflows_first_is_named(engine):
    from peft.tuners.lora import LoraLayer

    batch = documents(10, 12)
    assert engine.first_nonfinite_layer([batch]) == "no layer overflows by itself"
    name, layer = [(n, m) for n, m in engine.model.named_modules() if isinstance(m, LoraLayer)][3]
    with torch.no_grad():
        layer.base_layer.weight.fill_(3e38)
    assert (
        engine.first_nonfinite_layer([batch])
        == f"the first layer that overflows is {name}.base_layer"
    )
    assert all(p.grad is None for p in engine.trained.values())
    assert replace(batch, idle=True).count == 0

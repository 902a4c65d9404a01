"""One way to train an adapter, measured in this process: prints one JSON line. `speed.py` lays out FOLDER and compares.

    python bench/peers.py FOLDER lorakit --updates 8

Every variant starts from the same weights and the same adapters, and sees the same rows per update at one rate.
Seconds are CPU seconds of the process, on a card seconds of the clock; the first two updates are not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", UNSLOTH_DISABLE_STATISTICS="1"
)
warnings.filterwarnings("ignore")
if any(word.startswith("unsloth") for word in sys.argv):
    import unsloth  # before transformers and peft
import numpy as np  # noqa: E402
import torch  # noqa: E402

SHAPES = {
    "10m": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 16000,
        "tie_word_embeddings": True,
    },
    "40m": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "3.8b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "tie_word_embeddings": False,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
FILES = {
    "instruction_small": "instruction_small/instruction-data.json",
    "gsm8k": "gsm8k/train_first3000.jsonl",
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, WARM, LONGEST, SHOWN = 16, 2, 1024, 5  # SHOWN: updates after which gradients are compared
CARD = torch.cuda.is_available()
DEVICE = "cuda" if CARD else "cpu"


# What is trained, on what


def lay(
    folder: Path, shape: str, rows: str, size: int, updates: int, lengths: str, rate: float
) -> None:
    """Into `folder`: a Llama of random weights in bf16 with lorakit's tokenizer, and the rows of all updates."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from lorakit import Run, prepare
    from lorakit.models.reading import tokenizer
    from lorakit.tasks.batches import Batches

    tok, _ = tokenizer("tiny")
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=4096,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "base")
    tok.save_pretrained(folder / "base")
    if rows == "synthetic":
        found = learnable(size * updates, config.vocab_size, lengths)
    else:
        file = Path(os.environ["LORAKIT_TEST_DATA"]) / FILES[rows]
        found = [
            {"ids": r["ids"].tolist(), "targets": r["targets"].tolist()}
            for r in prepare(
                Run(model=str(folder / "base"), data=str(file), max_length=LONGEST)
            ).rows["train"]
        ]
    order = Batches(
        found,
        np.array([len(r["ids"]) for r in found]),
        global_batch_size=size,
        micro_batch_size=size,
        micro_batch_tokens=10**9,
        packing=True,
        seed=0,
        epochs=1,
        max_updates=updates,
    )
    (folder / "rows.json").write_text(json.dumps(found))
    (folder / "order.json").write_text(
        json.dumps([order.indices(u).tolist() for u in range(updates)])
    )
    (folder / "work.json").write_text(
        json.dumps(
            {
                "size": size,
                "rate": rate,
                "matrices": matrices(config),
                "device": DEVICE,
                "versions": versions(),
                "machine": torch.cuda.get_device_name() if CARD else processor(),
            }
        )
    )


def versions() -> dict[str, str]:
    found = {d.name: d.version for d in metadata.distributions()}
    return {
        n: found[n]
        for n in ("torch", "transformers", "peft", "trl", "bitsandbytes", "unsloth")
        if n in found
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def learnable(count: int, vocabulary: int, lengths: str) -> list[dict]:
    """Lengths as in Alpaca (lognormal, 156 at the median) or all 2,048; 40 % random, then a count in steps of ten."""
    rng, rows = np.random.default_rng(1), []
    for _ in range(count):
        n = 2048 if lengths == "full" else int(np.clip(rng.lognormal(5.05, 0.65), 24, LONGEST))
        asked = int(0.4 * n)
        answer = 10 * (1 + (rng.integers(16) + np.arange(n - asked)) % 16)
        rows.append(
            {
                "ids": [*rng.integers(200, vocabulary, asked).tolist(), *answer.tolist()],
                "targets": [False] * asked + [True] * (n - asked),
            }
        )
    return rows


def matrices(config: Any) -> list[tuple[int, int, int]]:
    """(out, in, how many) of all products of a forward pass."""
    h, i, n = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv = h // config.num_attention_heads * config.num_key_value_heads
    return [(h, h, 2 * n), (kv, h, 2 * n), (i, h, 2 * n), (h, i, n), (config.vocab_size, h, 1)]


class Work:
    """What is to be done, and what was seen of it."""

    def __init__(self, given: argparse.Namespace):
        self.folder, self.name, self.count = (
            given.folder,
            given.name or given.variant,
            given.updates,
        )
        self.base, self.profiled = str(given.folder / "base"), given.profile
        self.facts = json.loads((given.folder / "work.json").read_text())
        self.size, self.rate = self.facts["size"], self.facts["rate"]
        self.rows = json.loads((given.folder / "rows.json").read_text())
        self.order = json.loads((given.folder / "order.json").read_text())
        self.longest = max(len(r["ids"]) for r in self.rows)
        if given.groups:  # the rows of each update as a peer has put them together
            self.updates = json.loads(given.groups.read_text())
        else:
            self.updates = [[self.rows[i] for i in chosen] for chosen in self.order[: self.count]]
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.clock: list[float] = []
        self.groups: list[list[dict]] = []  # what a peer has regrouped
        self.more: dict[str, Any] = {}

    def gradients(
        self, trained: dict[str, torch.Tensor], backward: Callable[[list[dict]], Any]
    ) -> None:
        """After a run: those of the next rows, where the reference's adapters stood after so many updates."""
        from safetensors.torch import load_file, save_file

        stood = self.folder / "adapters.safetensors"
        if not stood.exists():
            return
        for name, value in load_file(stood).items():
            trained[name].data.copy_(value)
            trained[name].grad = None
        backward([self.rows[i] for i in self.order[SHOWN]])
        save_file(
            {n: p.grad.float().cpu().contiguous() for n, p in trained.items()},
            self.folder / f"{self.name}.safetensors",
        )

    def stand(self, trained: dict[str, torch.Tensor]) -> None:
        """Keeps the reference's adapters."""
        if self.name == "reference" and len(self.clock) == SHOWN:
            from safetensors.torch import save_file

            save_file(
                {n: p.detach().cpu().contiguous() for n, p in trained.items()},
                self.folder / "adapters.safetensors",
            )

    def done(self, loss: float, tokens: int) -> None:
        """After each update."""
        if CARD:
            torch.cuda.synchronize()
        self.clock.append(time.perf_counter() if CARD else time.process_time())
        self.losses.append(loss)
        self.tokens.append(tokens)

    def line(self) -> dict[str, Any]:
        if self.groups:
            (self.folder / f"{self.name}.groups.json").write_text(json.dumps(self.groups))
        seconds = self.clock[-1] - self.clock[WARM - 1] if len(self.clock) > WARM else math.nan
        return {
            "variant": self.name,
            "tokens_per_second": sum(self.tokens[WARM:]) / seconds,
            "seconds": seconds,
            "tokens": sum(self.tokens[WARM:]),
            "losses": self.losses,
            "peak_rss": peak_rss(),
            "peak_card": torch.cuda.max_memory_allocated() if CARD else None,
            **self.more,
        }


def peak_rss() -> int:
    """Bytes. Linux's own count: its `ru_maxrss` begins at the size of the process that started this one."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def start(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Adapters as PEFT begins them, the same in every variant."""
    rng = np.random.default_rng(0)
    return {
        n: np.zeros(s, np.float32)
        if "lora_B" in n
        else rng.uniform(-(s[1] ** -0.5), s[1] ** -0.5, s).astype(np.float32)
        for n, s in sorted(shapes.items())
    }


def begun(model: Any) -> dict[str, torch.Tensor]:
    """Puts the common start into a model of PEFT -> what is trained."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name, value in start({n: tuple(p.shape) for n, p in trained.items()}).items():
        trained[name].data.copy_(torch.from_numpy(value))
    return trained


# lorakit


def lorakit(work: Work, quantization: str = "none", compiled: bool = False) -> None:
    """Its own engine, batches and loop."""
    from lorakit import Run
    from lorakit.engines.torch import load
    from lorakit.machine import hardware
    from lorakit.planning import choose
    from lorakit.tasks.batches import Batches, collate
    from lorakit.training.loop import State, train

    run, _ = choose.resolve(
        Run(
            model=work.base,
            data="-",
            engine="torch",
            precision="bf16",
            quantization=quantization,
            rank=RANK,
            alpha=RANK,
            compile=compiled,
            learning_rate=work.rate,
            global_batch_size=work.size,
            max_length=work.longest,
        ),
        hardware.facts(),
    )
    engine = load(run)
    engine.set_weights(start({n: w.shape for n, w in engine.weights().items()}))
    lengths = np.array([len(r["ids"]) for r in work.rows])
    batches = Batches(
        work.rows,
        lengths,
        global_batch_size=work.size,
        micro_batch_size=run.micro_batch_size,
        micro_batch_tokens=run.micro_batch_tokens,
        packing=engine.packing,
        seed=0,
        epochs=1,
        max_updates=work.count,
    )
    train(
        engine,
        batches,
        State(),
        lambda u: work.rate,
        lambda state, line: work.done(
            line["loss"], int(lengths[work.order[state.update - 1]].sum())
        ),
    )
    work.more = {
        "settings": {
            n: getattr(run, n) for n in ("micro_batch_tokens", "gradient_checkpointing", "offload")
        },
        "notes": {n: words for n, words in engine.notes.items()},
    }
    work.gradients(engine.trained, lambda rows: engine.backward(collate(rows, range(len(rows)))))
    engine.optimization.drop_gradients()
    if work.profiled:
        work.more["profile"] = profile(engine, batches[0], work.rate)


def profile(engine: Any, micro_batches: list, rate: float) -> dict[str, float]:
    """Milliseconds of one more update by what they were spent on."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * CARD
    with watch(activities=kinds, acc_events=True) as found:
        for batch in micro_batches:
            engine.backward(batch)
        engine.update(rate, sum(b.count for b in micro_batches))
    spent: dict[str, float] = {}
    for event in found.events():
        took = (event.self_device_time_total if CARD else event.self_cpu_time_total) / 1e3
        if CARD and event.device_type.name == "CUDA":
            continue  # counted where it was asked for
        what = kind(event)
        spent[what] = spent.get(what, 0.0) + took
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


OUTER = {
    "SummedCrossEntropy": "head and loss",
    "FrozenNorm": "norms",
    "FusedNorm": "norms",
    "Optimizer": "optimizer",
    "attention": "attention",
    "ShortSequenceAttention": "attention",
}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")


def kind(event: Any) -> str:
    """Which part of an update an event of torch's profiler belongs to: by the names around it."""
    names, place = [], event
    while place is not None:
        names.append(place.name)
        place = place.cpu_parent
    for name in names:
        for part, words in OUTER.items():
            if part in name:
                return words
    return "products" if names[0] in PRODUCTS else "other"


def lorakit_fp8(work: Work) -> None:
    """Lossy: its gradients' cosine is 0.98, not 0.999."""
    lorakit(work, "fp8")


def lorakit_compiled(work: Work) -> None:
    """With the passes between its products compiled."""
    lorakit(work, compiled=True)


def lorakit_nf4(work: Work) -> None:
    lorakit(work, "nf4")


# A plain loop


def plain(work: Work, dtype: torch.dtype = torch.bfloat16, together: bool = True) -> None:
    """transformers + PEFT + AdamW: the rows of an update padded to its longest, or one after the other."""
    model = loaded(dtype).to(DEVICE)
    trained = begun(model)
    optimizer = torch.optim.AdamW(trained.values(), lr=work.rate, weight_decay=0.0)
    model.train()

    def backward(rows: list[dict]) -> float:
        count, total = sum(sum(r["targets"][1:]) for r in rows), 0.0
        for part in [rows] if together else [[r] for r in rows]:
            loss = model(
                **padded(part), use_cache=False, num_items_in_batch=torch.tensor(count)
            ).loss
            loss.backward()
            total += float(loss.detach())
        return total

    for rows in work.updates:
        total = backward(rows)
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        work.done(total, sum(len(r["ids"]) for r in rows))
        work.stand(trained)
    work.gradients(trained, backward)


def reference(work: Work) -> None:
    """What the others' losses and gradients are measured against."""
    plain(work, torch.float32, together=False)


def loaded(dtype: torch.dtype) -> Any:
    """The base with an adapter of PEFT's."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    return get_peft_model(
        AutoModelForCausalLM.from_pretrained(GIVEN.folder / "base", dtype=dtype), adapter()
    )


def adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
    )


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    """(D, T) each."""
    width = max(len(r["ids"]) for r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for d, row in enumerate(rows):
        n = len(row["ids"])
        ids[d, :n], mask[d, :n] = torch.tensor(row["ids"]), 1
        labels[d, :n] = torch.where(torch.tensor(row["targets"]), ids[d, :n], -100)
    return {
        "input_ids": ids.to(DEVICE),
        "attention_mask": mask.to(DEVICE),
        "labels": labels.to(DEVICE),
    }


# TRL


def trl_default(work: Work, **changes: Any) -> None:
    """SFTTrainer as it comes: fp32 weights under autocast, activations recomputed, padded rows."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        work.base, dtype=changes.pop("weights", torch.float32), **changes.pop("loading", {})
    )
    trl(work, model, adapter(), **changes)


def trl_packed(work: Work, **changes: Any) -> None:
    """bf16 weights, nothing recomputed, packs of 2,048 tokens."""
    trl_default(
        work,
        weights=torch.bfloat16,
        gradient_checkpointing=False,
        packing=True,
        max_length=2048,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        **changes,
    )


def trl_liger(work: Work) -> None:
    """The same with Liger's kernels, on a card where `liger-kernel` is installed."""
    trl_packed(work, use_liger_kernel=True)


def trl_best(work: Work) -> None:
    """The fastest setting found: packs on a card; on a CPU one row at a time, which pads nothing (see NOTES.md)."""
    if CARD:
        return trl_packed(work)
    trl_default(
        work,
        weights=torch.bfloat16,
        gradient_checkpointing=False,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=work.size,
    )


def trl_nf4(work: Work) -> None:
    """The same with bitsandbytes' 4-bit weights, computing in bf16."""
    from transformers import BitsAndBytesConfig

    trl_default(
        work,
        weights=torch.bfloat16,
        gradient_checkpointing=False,
        loading={
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            ),
            "device_map": {"": DEVICE},
        },
    )


def trl(work: Work, model: Any, peft_config: Any, tokenizer: Any = None, **changes: Any) -> None:
    """A run of SFTTrainer, its rows in the common order."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bar()
    rows = [row for update in work.updates for row in update]
    arguments = SFTConfig(
        **{
            "output_dir": str(work.folder / "trl"),
            "max_length": work.longest,
            "per_device_train_batch_size": min(8, work.size),
            "gradient_accumulation_steps": max(1, work.size // 8),
            "max_steps": work.count,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": not CARD,
            "dataloader_pin_memory": CARD,
            "disable_tqdm": True,
            "learning_rate": work.rate,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "train_sampling_strategy": "sequential",
            **changes,
        }
    )
    seen: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            work.done(math.nan, sum(seen))
            seen.clear()

    trainer = SFTTrainer(
        model=model,
        args=arguments,
        peft_config=peft_config,
        callbacks=[Watch()],
        processing_class=tokenizer or AutoTokenizer.from_pretrained(work.base),
        train_dataset=Dataset.from_list(
            [
                {
                    "input_ids": r["ids"],
                    "labels": [
                        i if t else -100 for i, t in zip(r["ids"], r["targets"], strict=True)
                    ],
                }
                for r in rows
            ]
        ),
    )
    begun(trainer.model)
    step = trainer.training_step

    def training_step(model: Any, inputs: dict, *args: Any, **kwargs: Any) -> Any:
        if "attention_mask" in inputs:
            seen.append(int(inputs["attention_mask"].sum()))
        else:
            seen.append(inputs["input_ids"].numel())
            if "position_ids" in inputs:
                regrouped(work, inputs)
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    trainer.train()
    work.losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]


def regrouped(work: Work, inputs: dict) -> None:
    """The rows of a pack, as the reference is to compute them."""
    ids, labels = inputs["input_ids"][0].tolist(), inputs["labels"][0].tolist()
    starts = [i for i, p in enumerate(inputs["position_ids"][0].tolist()) if p == 0]
    work.groups.append(
        [
            {"ids": ids[a:b], "targets": [x != -100 for x in labels[a:b]]}
            for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)
        ]
    )


# Unsloth, on a card


def unsloth_default(
    work: Work, recomputing: Any = "unsloth", rows: int = 2, **changes: Any
) -> None:
    """As its notebooks have it: two rows at a time, its own recomputing."""
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        work.base, max_seq_length=max(2048, work.longest), dtype=torch.bfloat16, load_in_4bit=False
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0.0,
        target_modules=TARGETS,
        use_gradient_checkpointing=recomputing,
    )
    trl(
        work,
        model,
        None,
        tokenizer,
        **{
            "per_device_train_batch_size": rows,
            "bf16": True,
            "gradient_accumulation_steps": max(1, work.size // rows),
            **changes,
        },
    )


def unsloth_tuned(work: Work) -> None:
    """Packed, 16,384 tokens at a time, nothing recomputed."""
    unsloth_default(work, False, 1, packing=True, max_length=16384, gradient_accumulation_steps=1)


# The machine


def matmul(work: Work, tokens: int = 1024) -> None:
    """FLOP a second of bf16 products at the shapes of the model, forward."""
    flop = seconds = 0.0
    tokens *= 16 if CARD else 1
    for out, width, count in work.facts["matrices"]:
        x = torch.randn(tokens, width, dtype=torch.bfloat16, device=DEVICE)
        w = torch.randn(out, width, dtype=torch.bfloat16, device=DEVICE)
        times = []
        for _ in range(6):
            begin = time.perf_counter() if CARD else time.process_time()
            x @ w.t()
            if CARD:
                torch.cuda.synchronize()
            times.append((time.perf_counter() if CARD else time.process_time()) - begin)
        seconds += count * float(np.median(times[1:]))
        flop += count * 2.0 * tokens * out * width
    work.more["flop_per_second"] = flop / seconds


VARIANTS = {
    f.__name__: f
    for f in (
        lorakit,
        lorakit_compiled,
        lorakit_nf4,
        lorakit_fp8,
        plain,
        reference,
        trl_default,
        trl_packed,
        trl_best,
        trl_liger,
        trl_nf4,
        unsloth_default,
        unsloth_tuned,
        matmul,
    )
}


def options() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("folder", type=Path)
    found.add_argument("variant", choices=[*VARIANTS, "lay"])
    found.add_argument("--updates", type=int, default=6)
    found.add_argument(
        "--groups", type=Path, help="rows of each update, as a peer has put them together"
    )
    found.add_argument("--name", help="of the files it leaves; else the variant's")
    found.add_argument("--profile", action="store_true")
    found.add_argument("--shape", default="40m", choices=SHAPES)
    found.add_argument("--rows", default="synthetic", choices=["synthetic", *FILES])
    found.add_argument("--lengths", default="alpaca", choices=["alpaca", "full"])
    found.add_argument("--size", type=int, default=8, help="rows per update")
    found.add_argument("--rate", type=float, default=1e-3, help="learning rate of every variant")
    return found


if __name__ == "__main__":
    GIVEN = options().parse_args()
    if GIVEN.variant == "lay":
        lay(
            GIVEN.folder,
            GIVEN.shape,
            GIVEN.rows,
            GIVEN.size,
            GIVEN.updates,
            GIVEN.lengths,
            GIVEN.rate,
        )
    else:
        work = Work(GIVEN)
        VARIANTS[GIVEN.variant](work)
        line = work.line() if work.clock else {"variant": work.name, **work.more}
        print(json.dumps(line), flush=True)

"""transformers + PEFT + bitsandbytes, on CUDA, MPS and CPU."""

from __future__ import annotations

import contextlib
import gc
import inspect
import math
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationMixin, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lorakit import base, kernels, machine, models, processes
from lorakit.batches import Batch
from lorakit.errors import LorakitError
from lorakit.files import whole
from lorakit.kernels import attention, lora, loss, simulate
from lorakit.processes import Crew
from lorakit.run import Run

SERVES = tuple(base.CLASSES)  # objectives and media
ROUNDS = True  # fake_quantization
HEAP = 1.05  # what glibc's heap takes for each byte alive (bench/predicted.py)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fits(facts: Any, spec: Any) -> str:
    """It serves everywhere that torch runs."""
    if not facts.packages.get("torch"):
        return "torch is not installed"
    if spec.stored == "nf4":
        return f"in {spec.name or spec.path} each expert is a layer of its own, which transformers' model has not"
    lost = next((c for c in facts.cards if not c.served(facts.torch_archs)), None)
    return f"torch {facts.packages['torch']} was not built for {lost.name} ({lost.arch})" if lost else ""


def suits(facts: Any) -> tuple[int, str]:
    lost = ", what it lacks on the CPU: PYTORCH_ENABLE_MPS_FALLBACK is set" if facts.mps_fallback else ""
    return 1, f"it serves {facts.device}{lost}"


def forms(facts: Any) -> tuple[str, ...]:
    """What it can keep a frozen base in, the smallest first: on Apple's GPU bitsandbytes computes since 0.50."""
    here = tuple(map(int, re.findall(r"\d+", facts.packages.get("bitsandbytes", "0.0"))[:2]))
    return ("none",) if facts.mps and here < (0, 50) else ("nf4", "int8", "none")


def device(crew: Crew) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", crew.local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load(run: Run, *, adapter: str | Path | None = None, classes: Sequence[str] = ()) -> TorchEngine:
    """The base with a new adapter to train, or with a saved one (`adapter`) to ask; of `classes` with a new head."""
    path, spec = base.path(run.model), base.spec(run.model)
    crew, idle = processes.join(), machine.resident()
    dtype, where = DTYPES[run.precision], device(crew)
    if where.type == "cpu":
        machine.return_large_blocks()
    config = base.labelled(base.config(run.model), classes)
    kind = base.maker(run.task, config, run.model)
    heads = new_heads(kind, config) if classes else []
    packable = kind is AutoModelForCausalLM and packs(config)
    # Whole models train in fp32 under autocast; a frozen base is kept in the computing precision.
    options: dict[str, Any] = {
        "dtype": torch.float32 if run.method == "full" else dtype,
        "attn_implementation": attention.NAME if packable else "eager" if kind is AutoModelForCausalLM else
        own_attention(kind, config),
    }
    if classes:
        options |= {"config": config, "ignore_mismatched_sizes": True}
    if run.quantization != "none":
        options |= {"quantization_config": quantization(run.quantization, dtype, [*spec.unquantized, *heads]),
                    "device_map": {"": where}}
    tokenizer, processor, _ = base.reader(run.model, config)
    torch.manual_seed(run.seed)
    source = str(adapter) if adapter and run.method == "full" else path
    try:
        model, loaded = kind.from_pretrained(source, output_loading_info=True, **options)
    except Exception as error:  # transformers checks little: damaged files raise almost anything
        raise base.unusable(run.model, error) from None
    if classes:
        heads += beside_layers(loaded["missing_keys"], heads)
        model.config.pad_token_id = tokenizer.pad_token_id if tokenizer else None
    if lost := sorted(k for k in loaded["missing_keys"] if not inside(k, heads)):
        raise LorakitError(f"{source}: the files lack {len(lost)} of the model's tensors, which would be random: "
                           f"'{lost[0]}', …; download it again, or name the model that they belong to")
    shard = run.shard and crew.size > 1
    if run.quantization == "none" and not shard:
        model.to(where)
    for module in model.modules():
        # An evaluation on avx512_bf16 CPUs repacks 4-bit weights in place; gradients are wrong from then on.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    check(run, model, tokenizer)
    if run.fake_quantization != "none" and (kind is not AutoModelForCausalLM or stacks(model)):
        raise LorakitError(f"fake_quantization={run.fake_quantization!r}: only models of words without stacked experts "
                           f"are rounded as their export will be, and {run.model} is another; leave it out")
    if run.gradient_checkpointing:
        recompute(model, run.gradient_checkpointing)
    notes = {}
    if run.method == "lora":
        model = with_adapter(model, run, spec, adapter, heads)
        form = run.fake_quantization
        notes["kernels"] = (kernels.install(model, form), "they compute what the model's own modules do")
        if form != "none":
            notes["fake_quantization"] = (form, "asked for; in training and in scoring every W + s B A computes as the "
                                                "export will round it, and so do embeddings and head")
    if shard:
        split_layers(model, where)
    machine.forget_peak()  # loading has held the files too
    return TorchEngine(model, tokenizer, run, where, packable, crew, idle, notes, processor, len(classes))


def own_attention(kind: Any, config: Any) -> str:
    """What a model that is never packed computes with."""
    return "sdpa" if getattr(kind._model_mapping[type(config)], "_supports_sdpa", False) else "eager"


def new_heads(kind: Any, config: Any) -> list[str]:
    """The modules that a classifier has beside its base: trained whole, and kept out of quantization."""
    with torch.device("meta"):
        model = kind.from_config(config)
    return [name for name, part in model.named_children()
            if name != model.base_model_prefix and next(part.parameters(), None) is not None]


def beside_layers(missing: Sequence[str], heads: list[str]) -> list[str]:
    """Modules that the files lack and that stand beside the layers, as BERT's pooler does: new as the head is."""
    names = {key.rpartition(".")[0] for key in missing if not inside(key, heads)}
    return sorted(name for name in names if not re.search(r"\.\d+\.", name + "."))


def inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a tensor is one of these modules'."""
    return any(name.startswith(f"{module}.") for module in modules)


def packs(config: Any) -> bool:
    """Whether this model's attention may be ours: plain scores, not capped; sinks may stand beside them."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None or getattr(config, "attn_logit_softcapping", None) is not None:
        return False
    return kind._supports_sdpa or "s_aux=" in inspect.getsource(sys.modules[kind.__module__])


def working(run: Run, tokens: int) -> int:
    """Bytes alive at the worst moment of a micro-batch beside weights, trained gradients and optimizer.

    Found by going through forward and backward of this very model with tensors that have no content. Raises
    `NotImplementedError` for a model whose way depends on its values.
    """
    config, dtype = base.sizes(run.model), DTYPES[run.precision]
    if base.maker(run.task, config, run.model) is not AutoModelForCausalLM:
        raise NotImplementedError(f"{config.model_type}: only models of words are gone through")
    if getattr(config.get_text_config(), "num_local_experts", None):
        raise NotImplementedError(f"{config.model_type}: which expert computes how much depends on the tokens")
    # In the simulation every device is a CPU, and its autocast knows no fp16.
    precision = torch.bfloat16 if dtype == torch.float16 else dtype
    length = min(run.max_length, tokens)
    lengths = [length] * (tokens // length) + [tokens % length] * (tokens % length > 0)
    try:
        model = skeleton(run, config, precision)
        bare = model.get_base_model() if run.method == "lora" else model
        with simulate.without_content():
            simulate.empty(model)
            model.train()
            ids = torch.zeros(1, tokens, dtype=torch.long)
            with (simulate.Live(model) as live, attention.packed(),
                  torch.autocast("cpu", dtype=precision, enabled=dtype != torch.float32)):
                documents = attention.Documents(lengths, ids.device, wide=not torch.cuda.is_available())
                hidden = getattr(bare, bare.base_model_prefix)(
                    input_ids=ids, position_ids=ids, use_cache=False, documents=documents)["last_hidden_state"][0]
                total = loss.linear_cross_entropy(hidden, bare.get_output_embeddings().weight, ids[0])
                total.backward()
    except Exception as error:
        raise NotImplementedError(f"{config.model_type}: {error}") from None
    most = live.most - sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return most if torch.cuda.is_available() else int(HEAP * most)


def skeleton(run: Run, config: Any, dtype: torch.dtype) -> Any:
    """The model as it is trained, on the meta device: without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME,
                                                 dtype=torch.float32 if run.method == "full" else dtype)
    if run.gradient_checkpointing:
        recompute(model, run.gradient_checkpointing)
    if run.method == "lora":
        model = with_adapter(model, run, base.spec(run.model), None)
        kernels.install(model, run.fake_quantization)
    return model


def check(run: Run, model: Any, tokenizer: Any) -> None:
    """Raises `LorakitError` when rows of this run cannot be this model's."""
    if tokenizer is None:
        return
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and run.max_length > limit:
        raise LorakitError(f"max_length={run.max_length} is longer than the {limit} positions of {run.model}")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise LorakitError(f"{run.model}: the tokenizer has {len(tokenizer)} tokens, the model {rows}; they do not "
                           "belong together")


def split_layers(model: Any, where: torch.device) -> None:
    """Spreads every layer's weights over the processes (FSDP2, arXiv 2304.11277), each fetched when its turn comes.

    Adapters stay whole everywhere: they are small, and so is their all-reduce. Outside the layers nothing is split.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(where.type, (torch.distributed.get_world_size(),))
    lora = {p for n, p in model.named_parameters() if p.requires_grad and "lora_" in n}
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=lora & set(layer.parameters()))
    model.to(where)


def layers(model: Any) -> list[torch.nn.Module]:
    """The blocks that repeat: the longest list of modules of one kind."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len({type(x) for x in m}) == 1]
    if not lists:
        raise LorakitError("this model has no list of equal layers: leave shard out, and gradient_checkpointing is "
                           "True or False")
    return list(max(lists, key=len))


def recompute(model: Any, count: bool | int) -> bool | int:
    """Activations are computed again in the backward pass (arXiv 1604.06174); a number: those of so many layers.

    The first ones: their turn comes when the activations of the others are gone.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if count is not True:
        for layer in layers(model)[count:]:
            layer.gradient_checkpointing = False
    return count


def full(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be spread over the processes. All must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextlib.contextmanager
def coarse_zero():
    """Inside, a CPU takes numbers below 1e-38 for zero: a softmax with a peak is full of them, and each is slow."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def threads(model: Any, run: Run) -> tuple[int, str]:
    """Sets and returns how many threads compute. Small products are over before a second thread has begun."""
    tokens = min(run.micro_batch_tokens, run.micro_batch_size * run.max_length)
    work = 2 * sum(p.numel() for p in model.parameters()) * tokens
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads(), "OMP_NUM_THREADS says so"
    if work < 1e10:
        torch.set_num_threads(1)
        return 1, f"a pass is {work / 1e9:.1f} GFLOP: too little to share"
    return torch.get_num_threads(), "all cores"


def quantization(name: str, dtype: torch.dtype, whole: Sequence[str]) -> BitsAndBytesConfig:
    """bitsandbytes' settings; the layers named in `whole` keep their precision."""
    skip = list(whole) or None
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip, bnb_4bit_quant_type="nf4",
                              bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def targeted(model: Any, run: Run, spec: Any) -> str | list[str]:
    """The layers and stacked experts that get an adapter. Raises `LorakitError` for one that the model lacks."""
    targets = spec.target_modules if run.target_modules == "auto" else run.target_modules
    if isinstance(targets, str):
        return targets
    names = [name for name, _ in model.named_modules()] + stacks(model)
    lost = [t for t in targets if not any(n == t or n.endswith("." + t) for n in names)]
    if lost:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise LorakitError(f"target_modules: {run.model} has no layer '{lost[0]}'; it has {', '.join(linear)}")
    return list(targets)


def stacks(model: Any) -> list[str]:
    """The matrices of a model that hold one for each expert: (E, in, out)."""
    return [name for name, p in model.named_parameters() if p.ndim == 3 and not name.endswith("weight")]


def with_adapter(model: Any, run: Run, spec: Any, adapter: str | Path | None, heads: Sequence[str] = ()) -> Any:
    """`heads`: modules that are trained whole beside the adapter, and saved with it."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if adapter:
        try:
            for name in ("adapter_config.json", "adapter_model.safetensors"):  # else PEFT would ask the hub for it
                if not (Path(adapter) / name).is_file():
                    raise FileNotFoundError(f"{name} is missing")
            return PeftModel.from_pretrained(model, str(adapter))
        except Exception as error:  # PEFT checks little: damaged files raise almost anything
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LorakitError(f"{adapter}: the adapter cannot be loaded onto {run.model}: {words}. Was it made for "
                               "another base? Else start the run again under another name") from None
    targets = targeted(model, run, spec)
    experts = [] if isinstance(targets, str) else [t for t in targets if any(models.stacked([t], n)
                                                                            for n in stacks(model))]
    if experts and (run.dropout or run.use_dora):
        raise LorakitError(f"target_modules={targets!r} and dropout={run.dropout:g}, use_dora={run.use_dora}: the "
                           f"adapter of stacked experts has neither; leave those out, or '{experts[0]}'")
    causal = type(model) in MODEL_FOR_CAUSAL_LM_MAPPING.values()
    config = LoraConfig(
        r=run.rank, lora_alpha=run.alpha, lora_dropout=run.dropout, use_rslora=run.use_rslora, use_dora=run.use_dora,
        target_modules=[t for t in targets if t not in experts] if experts else targets,
        task_type="CAUSAL_LM" if causal else None, target_parameters=experts or None,
        exclude_modules=excluded(targets, [*heads, *towers(model)]), modules_to_save=list(heads) or None)
    try:
        return get_peft_model(model, config)  # adapters are fp32
    except ValueError as error:
        raise LorakitError(f"target_modules={targets!r}: {error}") from None
    except RuntimeError as error:
        raise LorakitError(f"rank={run.rank}: the adapters cannot be made ({str(error).splitlines()[0]}); lower rank"
                           ) from None


def towers(model: Any) -> list[str]:
    """The parts of a model of words that see or hear for it: frozen, and never in training mode."""
    kinds = tuple(type(part) for name in ("vision_config", "audio_config")
                  if (part := getattr(model.config, name, None)) is not None)
    found = [name for name, part in model.named_modules()
             if name and isinstance(part, PreTrainedModel) and kinds and isinstance(part.config, kinds)]
    return [name for name in found if not inside(name, found)]


def excluded(targets: str | list[str], parts: list[str]) -> str | None:
    """What gets no adapter, as a regular expression; a regular expression of the user's says itself what does."""
    if not parts or (isinstance(targets, str) and targets != "all-linear"):
        return None
    return "|".join(rf"{re.escape(part)}(\..*)?" for part in parts)


class TorchEngine:
    """See `lorakit.engines.Engine` for the contract."""

    def __init__(self, model: Any, tokenizer: Any, run: Run, where: torch.device, packable: bool, crew: Crew,
                 idle: int = 0, notes: dict[str, tuple[Any, str]] | None = None, processor: Any = None,
                 classes: int = 0):
        """`idle`: resident bytes before the model was loaded; `notes`: choices made until then; `classes`: how many
        there are to tell apart, 0 where words are learnt."""
        self.model, self.tokenizer, self.device = model, tokenizer, where
        self.processor, self.classes = processor, classes
        self.clip, self.method = run.max_grad_norm, run.method
        self.pad_id = tokenizer.pad_token_id if tokenizer else 0
        text = model.config.get_text_config(decoder=True)
        self.positions = getattr(text, "max_position_embeddings", None) or getattr(text, "max_target_positions", None)
        self.arguments = inspect.signature(self._bare().forward).parameters
        self.words = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        self.drops_last = base.spec(run.model).drops_last
        self.towers = [self._bare().get_submodule(name) for name in towers(self._bare())]
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in self.trained.values():
            parameter.data = parameter.data.float()
        self.autocast = DTYPES[run.precision] if run.precision != "fp32" else None
        self.optimizer = make_optimizer(run, list(self.trained.values())) if self.trained else None
        self.scaler = torch.amp.GradScaler(where.type, enabled=run.precision == "fp16")
        # Keeps summed losses in fp16's range; a power of two, so that in fp32 nothing is rounded.
        self.unit = 2.0 ** round(math.log2(run.micro_batch_tokens))
        self.idle = idle
        self.worked, self.pending = 0, []  # targets trained on; the micro-batches since the last update
        self.recomputed = run.gradient_checkpointing
        self.limit, self.offload, self.steps = None, run.offload is True, []  # tokens at a time; steps down taken
        self.crew, self.sharded = crew, run.shard and crew.size > 1
        self.share = (0, 1) if self.sharded else (crew.rank, crew.size)
        self.keeps_logits = "logits_to_keep" in self.arguments
        self.notes: dict[str, tuple[Any, str]] = dict(notes or {})
        if where.type == "cpu":
            self.notes["threads"] = threads(model, run)
        self.packing = bool(run.packing)
        if self.packing:
            self.packing, words = self._isolates(packable, run.max_length)
            self.notes["packing"] = (self.packing, words)
        self.head = None if classes else self._find_head()

    def _bare(self) -> Any:
        return self.model.get_base_model() if self.method == "lora" else self.model

    def _isolates(self, packable: bool, max_length: int) -> tuple[bool, str]:
        """Whether a document in a pack is what it is alone in the padded form: tried out, not believed."""
        if not packable:
            return False, "padded: this model's attention has no form over packs here"
        config = self._bare().config.get_text_config()
        window = max(getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size"))
        length = min(max_length, 24 + (window if max_length > window else 0))  # past the window, where rows get there
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        low, high, second = np.random.default_rng(0).integers(0, vocabulary, (3, length))
        # How many tokens an expert gets decides how its product is rounded, and that may send a token elsewhere.
        experts = bool(stacks(self.model))
        with self._evaluating(), torch.no_grad():
            plain = self._last(second, packed=False)
            try:
                packed = self._last(low, second, packed=True)
                crosses = self._crosses(low[:24], second[:24]) if experts else not torch.equal(
                    packed, self._last(high, second, packed=True))
            except (TypeError, ValueError, RuntimeError) as error:
                return False, f"padded: this model does not run over packs ({error})"
        if crosses:
            return False, "padded: in this model a document in a pack would see the one before it (tried at loading)"
        apart = (packed - plain).abs().amax(1)[-24:]
        noise = (1e-3 if self.autocast is None else 0.1) * max(1.0, plain.abs().max().item())
        if (apart.median() if experts else apart.max()) > noise:
            return False, "padded: this model's own attention differs from the one over packs (tried at loading)"
        return True, "packed: exact attention per document (tried at loading: no document sees another)"

    def _last(self, *documents: np.ndarray, packed: bool) -> torch.Tensor:
        """(length - 1, V) logits of the last of documents of one length."""
        number, length, self.packing = len(documents), len(documents[0]), packed
        return self._logits(Batch(np.concatenate(documents), np.tile(np.arange(length) > 0, number),
                                  np.full(number, length), np.arange(number)))[1 - length:].float()

    def _crosses(self, *documents: np.ndarray) -> bool:
        """Whether in a pack of two the second depends on the first: by its gradient, which rounding leaves zero."""
        seen: list[torch.Tensor] = []
        hook = self.model.get_input_embeddings().register_forward_hook(
            lambda module, given, out: seen.append(out.detach().requires_grad_()) or seen[-1])
        try:
            with torch.enable_grad():
                logits = self._last(*documents, packed=True)
                gradient, = torch.autograd.grad(logits.square().sum(), seen[0])
        finally:
            hook.remove()
        return bool(gradient[0, :len(documents[0])].any())

    @contextlib.contextmanager
    def _evaluating(self):
        training = self.model.training
        self.model.eval()
        try:
            with self._precision(), coarse_zero():
                yield
        finally:
            self.model.train(training)

    def _precision(self):
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def _find_head(self) -> dict[str, Any] | None:
        """What `kernels.loss` needs to stand for the model's own head; None where its logits differ: tried out."""
        config, layer = self._bare().config.get_text_config(decoder=True), self._bare().get_output_embeddings()
        if type(layer) is not torch.nn.Linear or layer.bias is not None:
            return None
        head = {"weight": layer.weight, "softcap": getattr(config, "final_logit_softcapping", None),
                "scale": getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)}
        batch = Batch(np.arange(1, 9), np.arange(8) > 0, np.array([8]), np.array([0]))
        with torch.no_grad(), self._evaluating():
            try:
                mine, own = loss.logits(self._hidden(batch), **head), self._logits(batch).float()
            except (AttributeError, TypeError, ValueError, RuntimeError):
                return None
        return head if torch.allclose(mine, own, rtol=0.02, atol=0.02 * float(own.abs().max())) else None

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """(K, H): what the head sees where it predicts the K targets."""
        return self._forward(getattr(self._bare(), self._bare().base_model_prefix), batch, "last_hidden_state")

    def _logits(self, batch: Batch) -> torch.Tensor:
        """(K, V) logits that predict the K targets, in the batch's order."""
        return self._forward(self.model, batch, "logits")

    def _forward(self, model: Any, batch: Batch, wanted: str) -> torch.Tensor:
        places = torch.from_numpy(np.flatnonzero(batch.targets)).to(self.device)
        if self.packing:
            ids = torch.from_numpy(batch.ids).to(self.device)
            position = torch.from_numpy(batch.positions).to(self.device)
            keep = {"logits_to_keep": places - 1} if self.keeps_logits and wanted == "logits" else {}
            with attention.packed():
                out = model(input_ids=ids[None], position_ids=position[None], use_cache=False,
                            documents=attention.Documents(batch.lengths, self.device), **keep)[wanted][0]
            return out if len(out) == len(places) else out[places - 1]  # some models pay no heed to logits_to_keep
        out = model(**self._padded(batch), use_cache=False)[wanted]
        document = torch.from_numpy(batch.documents).to(self.device)
        return out[document[places], torch.from_numpy(batch.positions).to(self.device)[places] - 1]

    def _padded(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Every document in a line of its own, beside its pictures or its sound."""
        given = self._media(batch.media)
        if not len(batch.ids):
            return given
        shape = (len(batch.lengths), int(batch.lengths.max()))  # (D, T)
        ids, mask = np.full(shape, self.pad_id), np.zeros(shape, dtype=np.int64)
        ids[batch.documents, batch.positions], mask[batch.documents, batch.positions] = batch.ids, 1
        return self._words(torch.from_numpy(ids), torch.from_numpy(mask)) | given

    def _words(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Tokens (D, T) under the names that the model gives them; which stand for a picture, where it asks."""
        given = {self.words: ids, self.words.replace("input_ids", "attention_mask"): mask}
        picture = getattr(self.model.config, "image_token_id", None)
        if picture is not None:
            given |= {name: (ids == picture).long() for name in ("token_type_ids", "mm_token_type_ids")
                      if name in self.arguments}
        return {name: value.to(self.device) for name, value in given.items()}

    def _media(self, media: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """The inputs of all documents, joined; where they differ in size, zeros fill them up."""
        out = {}
        for name in media[0] if media else ():
            if name not in self.arguments:
                continue
            parts = [torch.from_numpy(np.ascontiguousarray(one[name])) for one in media]
            most = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
            parts = [F.pad(p, [n for m, s in zip(most[::-1], p.shape[:0:-1], strict=True) for n in (0, m - s)])
                     for p in parts]
            value = torch.cat(parts).to(self.device)
            out[name] = value.to(self.model.dtype) if value.is_floating_point() else value
        return out

    def _loss(self, batch: Batch) -> torch.Tensor:
        """The sum over the targets, in nats."""
        if batch.labels is not None:
            return F.cross_entropy(self._class_logits(batch), torch.from_numpy(batch.labels).to(self.device),
                                   reduction="sum")
        answers = torch.from_numpy(batch.ids[batch.targets]).to(self.device)
        if self.head is None:
            return F.cross_entropy(self._logits(batch).float(), answers, reduction="sum")
        return loss.linear_cross_entropy(self._hidden(batch), answers=answers, **self.head)

    def _class_logits(self, batch: Batch) -> torch.Tensor:
        """(D, C) in fp32."""
        return self.model(**self._padded(batch))["logits"].float()

    def backward(self, batch: Batch) -> tuple[float, int]:
        if batch.idle and not self.sharded:
            return 0.0, 0
        self.pending.append(batch)
        try:
            return self._backward(batch)
        except torch.OutOfMemoryError:
            pass  # outside of this clause the failed graph is free
        while True:
            self._step_down()
            try:
                return [self._backward(again) for again in self.pending][-1]
            except torch.OutOfMemoryError:
                continue

    def _backward(self, batch: Batch) -> tuple[float, int]:
        with coarse_zero():
            return self._accumulate(batch)

    def _accumulate(self, batch: Batch) -> tuple[float, int]:
        self.model.train()
        for tower in self.towers:
            tower.eval()
        summed = 0.0
        for part in batch.parts(self.limit):
            torch.manual_seed(part.seed)
            keep = torch.autograd.graph.save_on_cpu(self.device.type == "cuda") if self.offload else None
            with self._precision(), keep or contextlib.nullcontext():
                total = self._loss(part) * (0.0 if part.idle else 1.0)
            self.scaler.scale(total / self.unit).backward()
            summed += float(total.detach())
        return summed, batch.count

    def _step_down(self) -> None:
        """Out of memory: what was accumulated is dropped, and the next rung makes the same update in less."""
        longest, most = (max(int(f(b.lengths)) for b in self.pending) for f in (np.max, np.sum))
        if self.sharded:
            raise LorakitError(f"out of memory with {most} tokens at a time, and processes that share the weights have "
                               "to keep step; lower micro_batch_tokens and start again: the run goes on")
        if most > longest and (self.limit is None or self.limit > longest):
            self.limit = max(longest, min(most, self.limit or most) // 2)
            step = f"at most {self.limit} tokens at a time"
        elif self.recomputed is not True:
            self.recomputed = recompute(self.model, True)
            step = "activations recomputed"
        elif not self.offload:
            self.offload, step = True, "activations kept in the host's memory"
        else:
            raise LorakitError(f"out of memory with one row of {longest} tokens, recomputed and offloaded; lower "
                               "max_length or rank, or take a smaller model")
        self.steps.append(step)
        self.optimizer.zero_grad(set_to_none=True)
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def blame(self, batches: list[Batch]) -> str:
        """The first module whose output is not finite, or whose output's gradient is not, in the order of a pass."""
        found: list[str] = []

        def look(name: str, what: str):
            def hook(module: Any, _: Any, values: Any) -> None:
                values = values if isinstance(values, (tuple, list)) else [values]
                if not found and any(torch.is_tensor(v) and v.is_floating_point() and not v.isfinite().all()
                                     for v in values):
                    found.append(f"{what} {name}")
            return hook

        leaves = [(n, m) for n, m in self.model.named_modules() if not list(m.children())]
        hooks = [m.register_forward_hook(look(n, "the first layer that overflows is")) for n, m in leaves]
        hooks += [m.register_full_backward_hook(look(n, "the gradient overflows first behind")) for n, m in leaves]
        head, self.head = self.head, None
        try:
            with lora.as_peft():
                for batch in batches:
                    self._backward(batch)
        finally:
            self.head = head
            for hook in hooks:
                hook.remove()
            self.optimizer.zero_grad(set_to_none=True)
        return found[0] if found else "no layer overflows by itself"

    @torch.no_grad()
    def reduce(self, total: float, count: int) -> tuple[float, int]:
        if self.crew.size == 1:
            return total, count
        whole = [p for p in self.trained.values() if not hasattr(p, "full_tensor")]
        for parameter in self.trained.values():
            if parameter.grad is not None and hasattr(parameter, "full_tensor"):
                parameter.grad.mul_(self.crew.size)  # FSDP has made it a mean
        for parameter in whole:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if whole:
            flat = torch.cat([p.grad.flatten() for p in whole])
            torch.distributed.all_reduce(flat)
            for parameter, summed in zip(whole, flat.split([p.numel() for p in whole]), strict=True):
                parameter.grad.copy_(summed.view_as(parameter))
        sums = torch.tensor([total, count], dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        return float(sums[0]), int(sums[1])

    def gather(self, value: Any) -> list[Any]:
        return self.crew.gather(value)

    def update(self, learning_rate: float, count: int) -> tuple[float, bool]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(self.unit / max(count, 1))
        norm = torch.linalg.vector_norm(torch.stack([full(torch.linalg.vector_norm(g)) for g in gradients]))
        if self.clip is not None and torch.isfinite(norm):
            for gradient in gradients:
                gradient.mul_(min(1.0, self.clip / (float(norm) + 1e-6)))
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.worked += sum(b.count for b in self.pending)
        self.pending.clear()
        return float(norm), self.scaler.get_scale() < scale

    def loss(self, batch: Batch) -> tuple[float, int]:
        per_document = self.predict(batch)
        return float(per_document[:, 0].sum()), int(per_document[:, 1].sum())

    def predict(self, batch: Batch) -> np.ndarray:
        try:
            return self._predict(batch)
        except torch.OutOfMemoryError:
            if self.sharded or len(batch.lengths) == 1:
                raise LorakitError(f"out of memory with one row of {len(batch.ids)} tokens; lower max_length") from None
        self._free()
        return np.concatenate([self.predict(part) for part in batch.parts(len(batch.ids) // 2)])

    @torch.no_grad()
    def _predict(self, batch: Batch) -> np.ndarray:
        if batch.labels is not None:
            return self._predict_labels(batch)
        answers = torch.from_numpy(batch.ids[batch.targets]).to(self.device)
        with self._evaluating():
            if self.head is None:
                logits = self._logits(batch).float()
                losses, right = F.cross_entropy(logits, answers, reduction="none"), logits.argmax(-1) == answers
            else:
                losses, right = loss.scores(self._hidden(batch), answers=answers, **self.head)
        losses, right = losses.double().cpu().numpy(), right.cpu().numpy()
        document = batch.documents[batch.targets]
        sums = [np.bincount(document, w, minlength=len(batch.lengths)) for w in (losses, np.ones_like(losses), right)]
        return np.stack(sums, axis=1)

    def _predict_labels(self, batch: Batch) -> np.ndarray:
        """(D, 3 + C)"""
        with self._evaluating():
            logits = self._class_logits(batch).double().cpu()
        labels = torch.from_numpy(batch.labels)
        losses, right = F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels
        return torch.column_stack([losses, torch.ones_like(losses), right, logits.softmax(-1)]).numpy()

    def generate(self, prompts: list[list[int]], max_new_tokens: int, stop_ids: list[int],
                 media: Sequence[dict[str, np.ndarray]] = ()) -> list[list[int]]:
        try:
            return self._generate(prompts, max_new_tokens, stop_ids, media)
        except torch.OutOfMemoryError:
            if self.sharded or len(prompts) == 1:
                raise LorakitError(f"out of memory while answering a prompt of {len(prompts[0])} tokens; lower "
                                   "max_new_tokens or max_length") from None
        self._free()
        half = len(prompts) // 2
        return [a for some in (slice(None, half), slice(half, None))
                for a in self.generate(prompts[some], max_new_tokens, stop_ids, media[some])]

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], max_new_tokens: int, stop_ids: list[int],
                  media: Sequence[dict[str, np.ndarray]]) -> list[list[int]]:
        width = max(map(len, prompts))
        if self.positions:  # the last new token needs no position
            if width > self.positions:
                raise LorakitError(f"a prompt has {width} tokens, and the model {self.positions} positions")
            max_new_tokens = min(max_new_tokens, self.positions - width + 1)
        unread = [self.pad_id] * self.drops_last
        ends = {} if unread else {"eos_token_id": stop_ids or None, "pad_token_id": self.pad_id}
        ids = torch.tensor([[self.pad_id] * (width - len(p)) + p + unread for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * (len(p) + len(unread)) for p in prompts])
        # Models that hear have a `generate` of their own, which decides about language and length.
        generate = partial(GenerationMixin.generate, self._bare()) if self.model.config.is_encoder_decoder else \
            self.model.generate
        with self._evaluating(), self._dense_head(), lora.standing():
            out = generate(
                **self._words(ids, mask), **self._media(media), **ends, max_new_tokens=max_new_tokens, do_sample=False,
                num_beams=1, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0, no_repeat_ngram_size=0)
        answers = []
        for row in out[:, width:].tolist():
            end = next((i for i, token in enumerate(row) if token in stop_ids), len(row))
            answers.append(row[:end])
        return answers

    @contextlib.contextmanager
    def _dense_head(self):
        """Inside, the head sees the last places in one piece: torch copies its weights for each row of a slice."""
        head = self._bare().get_output_embeddings()
        hook = None if head is None else head.register_forward_pre_hook(lambda module, given: given[0].contiguous())
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    def memory(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        return max(0, machine.peak_resident() - self.idle)

    def parameters(self) -> dict[str, tuple[int, bool]]:
        def size(parameter: torch.nn.Parameter) -> int:
            state = getattr(parameter, "quant_state", None)
            return int(np.prod(state.shape)) if state is not None else parameter.numel()
        return {n: (size(p), p.requires_grad) for n, p in self.model.named_parameters()}

    def fingerprint(self) -> dict[str, int]:
        whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        spread = {n for n, t in tensors if hasattr(t, "full_tensor")}
        sums = {n: int(getattr(t, "_local_tensor", t).detach().contiguous().view(whole[t.element_size()])
                       .sum(dtype=torch.int64)) for n, t in tensors}
        each = self.gather(sums) if spread else [sums]
        return {n: sum(s[n] for s in each) if n in spread else mine for n, mine in sums.items()}

    def weights(self) -> dict[str, np.ndarray]:
        return {n: full(p.detach()).cpu().numpy().copy() for n, p in self.trained.items()}

    @torch.no_grad()
    def set_weights(self, tensors: dict[str, np.ndarray]) -> None:
        if tensors.keys() != self.trained.keys():
            other = sorted(tensors.keys() ^ self.trained.keys())[0]
            raise LorakitError(f"the checkpoint does not belong to this model and method: '{other}' is in one only")
        for name, parameter in self.trained.items():
            if tensors[name].shape != tuple(parameter.shape):
                raise LorakitError(f"the checkpoint does not belong to this model: '{name}' has the shape "
                                   f"{tensors[name].shape}, expected {tuple(parameter.shape)}")
            parameter.copy_(self._spread(torch.from_numpy(tensors[name]), parameter))

    def _spread(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """On the device, and over the processes where `like` is."""
        if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
            return tensor.to(self.device)
        return torch.distributed.tensor.distribute_tensor(tensor.to(self.device), like.device_mesh, like.placements)

    def state(self) -> dict[str, np.ndarray]:
        out = {f"weight/{n}": w for n, w in self.weights().items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                value = full(value.detach()).cpu().numpy() if torch.is_tensor(value) else np.asarray(value)
                out[f"optimizer/{name}/{key}"] = value
        return out | {f"scaler/{k}": np.asarray(v) for k, v in self.scaler.state_dict().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.set_weights({k.removeprefix("weight/"): v for k, v in state.items() if k.startswith("weight/")})
        for name, parameter in self.trained.items():
            prefix = f"optimizer/{name}/"
            kept = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if kept:
                self.optimizer.state[parameter] = {k: self._optimizer_value(k, v, parameter) for k, v in kept.items()}
        scaler = {k.removeprefix("scaler/"): v.item() for k, v in state.items() if k.startswith("scaler/")}
        if scaler:
            self.scaler.load_state_dict(scaler)

    def _optimizer_value(self, key: str, value: np.ndarray, parameter: torch.Tensor) -> Any:
        if key == "step":  # a tensor on the CPU for torch, a number for bitsandbytes
            return torch.tensor(value) if isinstance(self.optimizer, torch.optim.AdamW) else int(value)
        return self._spread(torch.from_numpy(value.copy()), parameter)

    def save(self, path: Path) -> Path:
        options: dict[str, Any] = {"save_embedding_layers": False} if self.method == "lora" else {}
        if self.sharded and self.method == "full":
            options = {"state_dict": {n: full(t).cpu() for n, t in self.model.state_dict().items()}}
        if not self.crew.first:
            return Path(path)
        with whole(Path(path)) as part:
            self.model.save_pretrained(part, **options)
            for reader in filter(None, (self.processor, self.tokenizer)):
                reader.save_pretrained(part)
        return Path(path)

    def close(self) -> None:
        self.trained, self.optimizer, self.model = {}, None, None
        lora.forget()
        self._free()


def make_optimizer(run: Run, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Weight decay acts on matrices, not on biases and norms (of full fine-tuning)."""
    groups = [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": run.weight_decay},
              {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if run.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=run.learning_rate)
    import bitsandbytes

    kind = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit", "paged_adamw_32bit": "PagedAdamW32bit"}
    return getattr(bitsandbytes.optim, kind[run.optimizer])(groups, lr=run.learning_rate)

"""What a base model's files may not do: fill the memory, or run without end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import child_environment

SECONDS, BYTES = 5, 2**30  # CPU time and memory that rendering two short turns may take

# Renders the template on standard input as transformers does: the same sandbox, the same names. Only Jinja is imported.
_CHILD = """
import datetime, json, resource, sys
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(Extension):
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)

def refuse(message):
    raise ValueError(message)

resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
template = sys.stdin.read()
turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
environment.filters["tojson"] = lambda x, **_: json.dumps(x)
environment.globals.update(raise_exception=refuse, strftime_now=lambda f: datetime.datetime.now().strftime(f))
try:
    if environment.parse(template).find(nodes.Pow):
        sys.exit(4)
    text = environment.from_string(template).render(
        messages=turns, tools=None, documents=None, add_generation_prompt=False, bos_token="", eos_token="")
    sys.exit(3 if len(text) > 1_000_000 else 0)
except MemoryError:
    sys.exit(3)
except Exception:  # a template may refuse these turns; whether it can be used is judged elsewhere
    pass
"""


@lru_cache(maxsize=64)
def check_template(template: str, model: str) -> None:
    """Raises `LorakitError` when rendering two short turns takes more than `SECONDS` of CPU or `BYTES` of memory.

    Powers are refused unrendered: nothing can end the one operation that 9**9**9 is. Other turns: see `rendering`.
    """
    code = f"SECONDS, BYTES = {SECONDS}, {BYTES}\n{_CHILD}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=template.encode("utf-8", "surrogatepass"),
            capture_output=True,
            env=child_environment(),
            timeout=20 * SECONDS,
        )
        code_of_exit = done.returncode
    except subprocess.TimeoutExpired:
        code_of_exit = -1
    if code_of_exit in (0, 1):
        return
    limits = f"does not end within {SECONDS} s and {BYTES // 2**20} MB on two short turns"
    raise LorakitError(
        f"its chat template {'computes powers (**)' if code_of_exit == 4 else limits}",
        setting="model",
        value=model,
        where=model,
        cure="take the model from its author, or replace chat_template.jinja",
    )


def templates_of(tokenizer: Any) -> list[str]:
    """Every chat template that a tokenizer brings: one, or several by name."""
    known = tokenizer.chat_template or ()
    return list(known.values()) if isinstance(known, dict) else [known] if known else []


def check_template_names(tokenizer: Any, model: str) -> None:
    """Raises `LorakitError` for a template whose name is none: transformers before 5.10 saves it under that path."""
    known = tokenizer.chat_template
    for name in known if isinstance(known, dict) else ():
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise LorakitError(
                f"its chat template is called {name!r}, which is a path and no name",
                setting="model",
                value=model,
                where=model,
                cure="take the model from its author",
            )


def refuse_weights(model: str, folder: Path, pickled: bool) -> None:
    """Raises `LorakitError` for weights in pickle files that are not asked for, and for files out of the folder.

    Args:
        pickled: the setting `pickled_weights`.
    """
    if not pickled and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise LorakitError(
            "its weights are pickle files (.bin), which can hold code",
            setting="pickled_weights",
            value=False,
            where=folder,
            cure="take a copy in safetensors, or set pickled_weights: true where you trust its author",
        )
    for index in folder.glob("*.index.json"):
        try:
            files = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
            continue  # transformers says what is wrong with it
        if outside := sorted(str(file) for file in files if Path(str(file)).name != str(file)):
            raise LorakitError(
                f"names weights outside of its folder: {outside[0]}",
                setting="model",
                value=model,
                where=index,
                cure="download the model again",
            )


# (names in config.json, the largest size that is taken for honest): models of 2026 stay 10x below. The first that fits.
LARGEST = tuple(
    (re.compile(names), most)
    for names, most in (
        (r"(layers?|blocks|depths?|stages)$", 2_000),
        (r"experts$", 20_000),
        (r"heads$", 10_000),
        (r"(hidden|head|embed|embedding)_(size|dim)$|^d_model$|^n_embd$", 500_000),
        (r"(intermediate|ffn)_(size|dim)$|^d_ff$", 5_000_000),
        (r"^vocab_size$", 5_000_000),
        (r"theta|position|length|context|window|seed|val$", 2_000_000_000),
        (r"", 50_000_000),
    )
)
SIZED = 6  # as many of these are sizes for certain, whatever number stands there
MOST_EXPERTS = 2_000_000  # of all layers together
LARGEST_CONFIG = 16 * 2**20  # bytes of config.json; 20,000 names of classes have 1 million
LARGEST_TOKENIZER = 300 * 2**20  # bytes of tokenizer.json; Gemma 3's has 33 million


def refuse_sizes(model: str, folder: Path) -> None:
    """Refuses files of a local base whose sizes would fill the memory before anything else is checked."""
    tokenizer_file, config_file = folder / "tokenizer.json", folder / "config.json"
    if tokenizer_file.is_file() and (size := tokenizer_file.stat().st_size) > LARGEST_TOKENIZER:
        raise _unlike_a_model(f"tokenizer.json has {size / 2**20:,.0f} MB", model, tokenizer_file)
    if config_file.is_file() and (size := config_file.stat().st_size) > LARGEST_CONFIG:
        raise _unlike_a_model(f"config.json has {size / 2**20:,.0f} MB", model, config_file)
    try:
        given = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # transformers says what is wrong with it
    try:
        for part in _objects(given):
            _refuse_sizes_of(part, model, config_file)
    except RecursionError:
        raise _unlike_a_model("it is nested too deeply", model, config_file) from None


def _refuse_sizes_of(part: dict[str, Any], model: str, file: Path) -> None:
    """Of one object: its own numbers, and those in its lists, which count together where they count modules."""
    modules = {"layers": 0.0, "experts": 0.0}
    for name, value in part.items():
        place, most = next((i, most) for i, (n, most) in enumerate(LARGEST) if n.search(name))
        numbers = [*_numbers(value)]
        if place >= SIZED:  # a rate or an angle may be as large as it likes
            numbers = [number for number in numbers if isinstance(number, int)]
        least = 0 if 0 < place < SIZED and not isinstance(value, list) else -most
        if name.endswith("depths"):
            numbers.append(sum(numbers))
        for number in numbers:
            if not least <= number <= most:
                raise _unlike_a_model(f"{name} is {number:,}", model, file)
        if place < 2 and numbers:
            kind = "experts" if place else "layers"
            modules[kind] = max(modules[kind], *numbers)
    if (together := modules["layers"] * modules["experts"]) > MOST_EXPERTS:
        raise _unlike_a_model(f"it has {together:,.0f} experts in all layers", model, file)


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value, however deep."""
    if isinstance(content, dict):
        yield content
    for inner in content.values() if isinstance(content, dict) else content:
        if isinstance(inner, (dict, list)):
            yield from _objects(inner)


def _numbers(value: Any) -> Iterator[float]:
    """The numbers of a value that is one, or a list of such."""
    if isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _unlike_a_model(problem: str, model: str, file: Path) -> LorakitError:
    return LorakitError(
        f"{problem}, which no model has",
        setting="model",
        value=model,
        where=file,
        cure="download the model again",
    )

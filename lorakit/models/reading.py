"""What makes model inputs of words, pictures and sound: a base's tokenizer and processor, ready for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from lorakit.common import hub
from lorakit.common.errors import LorakitError
from lorakit.models.locate import find_path, find_spec, unusable
from lorakit.models.rendering import rendered
from lorakit.models.safety import check_template, check_template_names, templates_of
from lorakit.models.served import CLASSES, reads_words, serves

NOTES = "lorakit_notes"  # what a tokenizer's own file has to say to whoever uses it
# For a base without a chat template: plain words around the turns, the tokenizer's own end token after an answer.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }}\n"
    "{% elif m['role'] == 'user' %}Question: {{ m['content'] }}\n"
    "{% else %}Answer: {{ m['content'] }}{{ eos_token }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)


def read_reader(model: str, where: str, given: Any) -> tuple[Any, Any, list[str]]:
    """(tokenizer or None, processor or None, notes) of a configuration; `where`: folder or hub id to load from."""
    words = reads_words(given)
    hears = any(serves(given, *k) for k in CLASSES if k[1])
    pictures = processor(model, where, given) if hears else None
    if not words:
        return None, pictures, []
    tok, notes = tokenizer(
        model, where=where, config=given, ends=serves(given, "tokens", "") and not hears
    )
    if pictures is not None and hasattr(pictures, "tokenizer"):
        tok.chat_template = (
            getattr(pictures, "chat_template", None)
            or pictures.tokenizer.chat_template
            or tok.chat_template
        )
        pictures.tokenizer = tok
    return tok, pictures, notes


def with_template(reader: tuple[Any, Any, list[str]], file: str, model: str) -> None:
    """Gives a reader the chat template of a file.

    Raises:
        LorakitError: the file cannot be read, or holds no template that renders two turns in time.
    """
    tok, pictures, _ = reader
    try:
        template = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable_template(file, str(error)) from None
    if tok is None or not template.strip():
        raise _unusable_template(file, "it is empty" if tok else f"{model} reads no text")
    check_template(template, file)
    try:
        rendered(tok, [{"role": "user", "content": "?"}], chat_template=template)
    except TemplateSyntaxError as error:
        raise _unusable_template(file, f"line {error.lineno}: {error.message}") from None
    except Exception:  # a template may refuse one turn; rows say so themselves
        pass
    for one in (tok, pictures):
        if one is not None:
            one.chat_template = template


def _unusable_template(file: str, why: str) -> LorakitError:
    return LorakitError(
        f"the chat template cannot be used: {why}",
        setting="chat_template",
        value=file,
        where=file,
        cure="name a file that holds a Jinja template, as chat_template.jinja beside a model does",
    )


def processor(model: str, where: str, given: Any) -> Any:
    """The model's own processor of pictures or sound. Raises `LorakitError` when it cannot be had."""
    from transformers import AutoProcessor

    try:
        found = AutoProcessor.from_pretrained(
            where, trust_remote_code=False, local_files_only=hub.kept_only(where)
        )
    except ImportError as error:
        raise LorakitError(
            f"{model}: its processor needs a package that is not installed: {hub.reason(error)}"
        ) from None
    except Exception as error:  # see `config`
        raise unusable(model, error) from None
    # BLIP begins a caption with a token that only its configuration names.
    start = getattr(getattr(given, "text_config", None), "bos_token_id", None)
    if start is not None:
        found.start_id = start
    return found


def tokenizer(
    model: str, ends: bool = True, config: Any = None, where: str = ""
) -> tuple[Any, list[str]]:
    """(tokenizer, notes on what had to be added to it); with `ends` it must have a token that ends an answer."""
    from transformers import AutoTokenizer

    where = where or find_path(model, find_spec(model))
    try:
        tok = AutoTokenizer.from_pretrained(
            where,
            config=config,
            trust_remote_code=False,
            local_files_only=hub.kept_only(where),
        )
    except Exception as error:  # see `config`
        raise unusable(model, error) from None
    check_template_names(tok, model)
    for template in templates_of(tok):
        check_template(template, model)
    notes = list(tok.init_kwargs.get(NOTES, []))
    if not tok.is_fast:
        raise LorakitError(
            f"{model}: its tokenizer has no fast version, which the mask needs for its offsets"
        )
    if tok.eos_token is None and ends:
        raise LorakitError(
            f"{model}: its tokenizer has no end-of-sequence token, so a trained answer could never end"
        )
    if tok.pad_token is None and tok.eos_token:
        tok.pad_token = tok.eos_token
        notes.append(
            "the tokenizer has no padding token; the end token pads, and padding is never a target"
        )
    if not tok.chat_template and ends:
        tok.chat_template = (
            PLAIN_TEMPLATE if tok.bos_token else PLAIN_TEMPLATE.replace("{{ bos_token }}", "")
        )
        notes.append(
            "the base has no chat template; turns are written as 'Question: …' and 'Answer: …', "
            f"an answer ends with {tok.eos_token!r}"
        )
    return tok, notes

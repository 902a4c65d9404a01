"""What a chat template writes around an answer: the prompt that generation uses, the answer's tokens, what is lost.

The prompt of training is the prompt of generation, to the token. What a row says and the template does not write is
named, so that it can be counted.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorakit.common.errors import BadRow, LorakitError
from lorakit.data import markup
from lorakit.models.rendering import rendered

MARK = "\ue000answer\ue001"  # rendered in an answer's place, it shows what the template writes around one
HELD = "\ue002{}\ue003"  # stands for a control token that a row's own words hold
THOUGHT = re.compile(r"\s*<think>(.*?)</think>[\n\r]*", re.DOTALL)
REASONING = ("reasoning_content", "thinking")


@dataclass(frozen=True)
class Answer:
    """One answer as token ids."""

    prompt: list[int]  # what generation is asked with
    ids: list[int]  # what is trained, through its end-of-turn token
    lost: frozenset[str] = frozenset()  # keys of `quality.LOST`


@dataclass(frozen=True)
class Encoded:
    """Token ids, and where each begins and ends in the text."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def render(
    tokenizer: Any,
    messages: list[dict],
    ask: bool,
    tools: list[dict] | None = None,
    where: str = "",
) -> str:
    """The conversation as text; with `ask` it ends where the model is to go on. `tools`: what it may call.

    Raises `LorakitError` for a template that does not end in time.
    """
    offered = {"tools": tools} if tools else {}
    return rendered(tokenizer, messages, where, add_generation_prompt=ask, **offered)


def words_of(message: dict) -> str:
    """What a turn says; its content may come in parts."""
    content = message["content"]
    return (
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    )


def saying(message: dict, words: str) -> dict:
    """The same turn with other words; pictures stay."""
    if isinstance(message["content"], str):
        return {**message, "content": words}
    others = [part for part in message["content"] if part.get("type") != "text"]
    return {**message, "content": [*others, {"type": "text", "text": words}]}


def thought_of(message: dict) -> tuple[str, str]:
    """(reasoning, visible words) of an answer, whether the reasoning has a key of its own or stands in <think>."""
    words = words_of(message)
    own = next((message[k] for k in REASONING if (message.get(k) or "").strip()), "")
    inline = THOUGHT.match(words)
    if own or not inline:
        return own.strip(), words
    return inline[1].strip(), words[inline.end() :]


def without_thought(message: dict) -> dict:
    """The same answer without its reasoning."""
    kept = {k: v for k, v in message.items() if k not in REASONING}
    return saying(kept, thought_of(message)[1]) if THOUGHT.match(words_of(message)) else kept


def with_thought_inline(message: dict) -> dict:
    """The same answer with its reasoning in <think> marks before its words."""
    thought, words = thought_of(message)
    return saying(without_thought(message), f"<think>\n{thought}\n</think>\n\n{words}")


def bare(tokenizer: Any, message: dict, opens: bool = False) -> dict:
    """The turn without end tokens behind its words, with `opens` without beginning tokens before them.

    A template writes its own; a row may hold those of another model.
    """
    words, own = words_of(message), control_tokens(tokenizer)
    while words.strip():
        match = markup.FIRST.match(words) if opens else markup.LAST.search(words)
        if match is None and own is not None and not opens:
            match = next((m for m in own.finditer(words) if not words[m.end() :].strip()), None)
        if match is None or match.span() == (0, len(words)):
            break
        words = words[match.end() :] if opens else words[: match.start()]
    return message if words == words_of(message) else saying(message, words)


def answer_of(
    tokenizer: Any,
    history: list[dict],
    message: dict,
    where: str,
    reasoning: str = "auto",
    tools: list[dict] | None = None,
) -> Answer:
    """The prompt and the tokens of an answer after these turns, or of its calls of `tools`.

    Raises `BadRow` when the template refuses the conversation, `LorakitError` when it never ends an answer.
    """
    control = control_tokens(tokenizer)
    if tools and control and (found := control.search(_calls(tools, *history, message))):
        raise BadRow(f"tools or calls hold the model's control token {found[0]!r}")
    held: list[str] = []
    plain = [
        bare(tokenizer, t, opens=not i) if t["role"] == "user" else t for i, t in enumerate(history)
    ]
    said = bare(tokenizer, message)
    ended = said is not message or any(a is not b for a, b in zip(plain, history, strict=True))
    told = [_held(turn, control, held) for turn in plain]
    answer = _held(said, control, held)
    if reasoning == "drop":
        answer = without_thought(answer)
    before, text, tail = _rendered(tokenizer, told, answer, where, tools)
    thought = thought_of(answer)[0]
    if reasoning == "keep" and thought and thought not in text[len(before) :]:
        answer = with_thought_inline(answer)
        before, text, tail = _rendered(tokenizer, told, answer, where, tools)
    prompt, ids, until, exact = _tokens(tokenizer, before, text, tail, held, where)
    lost = set(_lost(told, answer, before, text[len(before) : until]))
    lost |= {"control"} if held else set()
    lost |= {"ended"} if ended else set()
    lost |= set() if exact else {"prompt"}
    return Answer(prompt, ids, frozenset(lost))


def _calls(tools: list[dict], *turns: dict) -> str:
    return json.dumps([tools, *(turn.get("tool_calls") for turn in turns)], ensure_ascii=False)


def _rendered(
    tokenizer: Any,
    history: list[dict],
    message: dict,
    where: str,
    tools: list[dict] | None = None,
) -> tuple[str, str, str]:
    """(the prompt, the prompt with the answer behind it, what the template writes after an answer's words)."""
    try:
        asked = render(tokenizer, history, True, tools, where)
        whole = render(tokenizer, [*history, message], False, tools, where)
        # Most templates write the words as they are: what follows them is what `marked` would tell.
        words = message["content"] if "tool_calls" not in message else ""
        if isinstance(words, str) and words and whole.startswith(asked + words):
            return asked, whole, whole[len(asked) + len(words) :]
        words_alone = {k: v for k, v in saying(message, MARK).items() if k != "tool_calls"}
        marked = render(tokenizer, [*history, words_alone], False, tools, where)
    except LorakitError:  # no row can be rendered with such a template
        raise
    except Exception as error:  # Jinja's own errors and those a template raises itself
        raise BadRow(f"the chat template refuses it: {error}") from None
    _, found, tail = marked.rpartition(MARK)
    if not found:
        raise LorakitError(
            f"{where}: the chat template of this model leaves the words of an answer out (it was "
            "written for images and text in parts). Use a model whose template takes plain text"
        )
    calls = "tool_calls" in message
    if calls and not whole.endswith(tail):  # gpt-oss closes a call otherwise than an answer
        control = control_tokens(tokenizer)
        ends = [m.start() for m in control.finditer(whole)] if control else []
        tail = whole[ends[-1] :] if ends else tail
    if whole.startswith(asked):
        return asked, whole, tail
    # Some templates ask with more than they render ("<think>"). Generation is asked with that, so training is too.
    common = os.path.commonprefix([asked, whole])
    extra = asked[len(common) :]
    if not extra.strip():
        return asked, asked + whole[len(common) :], tail
    thought, words = thought_of(message)
    said = whole[len(common) :] if calls else words + tail
    if asked.rfind("<think>") > asked.rfind("</think>"):
        return asked, f"{asked}{thought}\n</think>\n\n{said}", tail
    return asked, asked + said, tail


def _tokens(
    tokenizer: Any, before: str, text: str, tail: str, held: list[str], where: str
) -> tuple[list[int], list[int], int, bool]:
    """(prompt, answer, where the answer ends in the text, whether the prompt is the one of generation)."""
    read = encoded(tokenizer, text, held)
    ids, offsets = read.ids, read.offsets
    special = special_of(tokenizer).ids
    closing = len(text) - len(tail) if text.endswith(tail) else len(before)
    end = next((i for i, (a, _) in enumerate(offsets) if a >= closing and ids[i] in special), None)
    if end is None:
        raise LorakitError(
            f"{where}: the chat template of this model ends an answer without a special token, so that a model "
            "trained on it would never stop. Use the instruct version of the model, or a tokenizer whose template "
            "ends the assistant's turn with the end-of-sequence token"
        )
    # Cohere closes the response and then the turn, in two tokens with nothing between.
    while (
        end + 1 < len(ids)
        and ids[end + 1] in special
        and not text[offsets[end + 1][0] - 1].isspace()
    ):
        end += 1
    ids, until = ids[: end + 1], offsets[end][1]
    prompt = _prefix(tokenizer, before, read, special) if not held else None
    if prompt is None:
        prompt = encoded(tokenizer, before, held).ids
    if ids[: len(prompt)] == prompt:
        return prompt, ids[len(prompt) :], until, True
    # A token joins the prompt's last character to the answer's first. When asked, the model sees the prompt alone.
    rest = encoded(tokenizer, text[len(before) : until], held).ids
    if tokenizer.decode(prompt + rest) == tokenizer.decode(ids):
        return prompt, rest, until, True
    start = next(i for i, (a, _) in enumerate(offsets) if a >= len(before))
    return ids[:start], ids[start:], until, False


def _prefix(
    tokenizer: Any, before: str, read: Encoded, special: frozenset[int]
) -> list[int] | None:
    """The tokens of the prompt, from what was read of the prompt with its answer; None where that does not tell.

    A special token parts the text, so what stands before the prompt's last one was read already.
    """
    last = bisect_left(read.offsets, (len(before), 0)) - 1
    while last > 0 and read.ids[last] not in special:
        last -= 1
    start = read.offsets[last][0] if last > 0 else 0
    if not start or read.offsets[last][1] > len(before):
        return None
    prompt = read.ids[:last] + encoded(tokenizer, before[start:]).ids
    return prompt if read.ids[: len(prompt)] == prompt else None


def _lost(history: list[dict], message: dict, before: str, target: str) -> Iterator[str]:
    """What the row says and the template did not write."""
    thought, words = thought_of(message)
    if thought and thought not in target:
        yield "reasoning"
    elif thought and target.count(thought) > 1 + words.count(thought):
        yield "doubled"
    called = [call["function"]["name"] for call in message.get("tool_calls", ())]
    if words.strip() not in target or not all(name in target for name in called):
        yield "answer"
    elif words[:1].isspace() and words.rstrip() not in target:
        yield "indentation"
    for turn in history:
        said = (thought_of(turn)[1] if turn["role"] == "assistant" else words_of(turn)).strip()
        escaped = json.dumps(said, ensure_ascii=False)[1:-1]  # as some templates write results
        if said not in before and not (turn["role"] == "tool" and escaped in before):
            yield "system" if turn["role"] == "system" else "history"


# Control tokens inside the words of a row


@dataclass(frozen=True)
class _Special:
    """What is special in a vocabulary of this size."""

    size: int
    ids: frozenset[int]  # of special and of added tokens
    control: (
        re.Pattern | None
    )  # special tokens; marks such as <think>, which are none, are left alone


def special_of(tokenizer: Any) -> _Special:
    """The special tokens of a tokenizer, found once: transformers lists them anew for every call."""
    size = tokenizer.backend_tokenizer.get_vocab_size()
    known = getattr(tokenizer, "_lorakit_special", None)
    if known is None or known.size != size:
        names = sorted(filter(None, tokenizer.all_special_tokens), key=len, reverse=True)
        ids = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        control = re.compile("|".join(map(re.escape, names))) if names else None
        known = tokenizer._lorakit_special = _Special(size, frozenset(ids), control)
    return known


def control_tokens(tokenizer: Any) -> re.Pattern | None:
    """The special tokens of a model as a pattern."""
    return special_of(tokenizer).control


def _held(turn: dict, control: re.Pattern | None, held: list[str]) -> dict:
    """The turn with a stand-in for each control token in its words, which `encoded` writes as text."""

    def stand_in(match: re.Match) -> str:
        held.append(match[0])
        return HELD.format(len(held) - 1)

    words = words_of(turn)
    if control is None or not control.search(words):
        return turn
    return saying(turn, control.sub(stand_in, words))


def encoded(tokenizer: Any, words: str, held: list[str] | None = None) -> Encoded:
    """Ids and offsets of all the words, no special tokens added. transformers' own call takes 1.7 times as long.

    With `held` the control tokens that stand for themselves in the words are encoded as plain text.
    """
    raw = tokenizer.backend_tokenizer
    if raw.truncation or raw.padding:  # as its file has them, or another call
        raw.no_truncation()
        raw.no_padding()
    if (
        raw.encode_special_tokens
    ):  # transformers leaves it so after a call with split_special_tokens
        raw.encode_special_tokens = False
    if not held:
        read = raw.encode(words, add_special_tokens=False)
        return Encoded(read.ids, read.offsets)
    known, ids, offsets = tokenizer.get_added_vocab(), [], []
    control = control_tokens(tokenizer)
    end = 0
    for match in [*control.finditer(words), None] if control else [None]:
        start = match.start() if match else len(words)
        piece = _restored(words[end:start], held)
        if piece:
            raw.encode_special_tokens = True
            try:
                read = raw.encode(piece, add_special_tokens=False)
            finally:
                raw.encode_special_tokens = False
            ids += read.ids
            # Offsets of a piece are its own: where words stand for a token, only its bounds are known.
            offsets += [
                (end + min(a, start - end), end + min(b, start - end)) for a, b in read.offsets
            ]
        if match:
            ids.append(
                known[match[0]] if match[0] in known else tokenizer.convert_tokens_to_ids(match[0])
            )
            offsets.append(match.span())
            end = match.end()
    return Encoded(ids, offsets)


def _restored(words: str, held: list[str]) -> str:
    """The words with the control tokens' text in place of their stand-ins."""
    return re.sub("\ue002(\\d+)\ue003", lambda m: held[int(m[1])], words)

"""Conversations: the assistant's tokens are trained, each answer's end-of-turn token included, nothing else.

Any stock chat template will do, it needs no `{% generation %}` marks. An answer is what the template adds to the very
prompt the model will be given when asked. Templates that render earlier turns anew (Qwen3 and gpt-oss drop old
thoughts) cannot show all answers in one text as they would be asked for; such a conversation becomes a row per answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Example

GIVES = "messages"
OBJECTIVE = "next_token"
MEDIUM = ""
METRICS = ("loss", "perplexity", "token_accuracy", "exact_match", "chrf")
COLUMNS = {
    "ids": ["int32"],
    "targets": ["bool"],
    "cut": "int32",
    "answer_start": "int32",
    "prompt": "string",
    "reference": "string",
}
MARK = "\ue000answer\ue001"  # rendered in an answer's place, it shows what the template writes around one


def encode(example: Example, tokenizer: Any, max_length: int) -> list[dict]:
    """Rows of one conversation; one unless the template renders earlier turns anew."""
    return encode_turns(example, example.fields["messages"], tokenizer, max_length)


def encode_turns(
    example: Example,
    messages: list[dict],
    tokenizer: Any,
    max_length: int,
    seen: Callable[[list[dict], list[int]], list[int]] = lambda turns, prompt: prompt,
) -> list[dict]:
    """The same for given turns; `seen` makes of the prompt's tokens what the model is given, pictures included."""
    rows: list[dict] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, answer = answer_ids(tokenizer, messages[:turn], message, example.where)
        prompt = seen(messages[:turn], prompt)
        row = rows[-1] if rows and prompt[: len(rows[-1]["ids"])] == rows[-1]["ids"] else None
        if row is None:
            row = {"ids": [], "targets": []}
            rows.append(row)
        row["targets"] += [False] * (len(prompt) - len(row["ids"])) + [True] * len(answer)
        row["ids"] = prompt + answer
        if len(prompt) < max_length:
            row |= {
                "answer_start": len(prompt),
                "prompt": words_of(messages[turn - 1]),
                "reference": words_of(message),
            }
    kept = [cut(row, max_length) for row in rows if any(row["targets"][:max_length])]
    if not kept:
        longest = max(len(row["ids"]) for row in rows)
        raise BadRow(
            f"no answer token within max_length={max_length} (the row has {longest} tokens)"
        )
    return [{**row, "file": example.file, "row": example.row} for row in kept]


def cut(row: dict, max_length: int) -> dict:
    """The row's first `max_length` tokens; `cut` says how many were lost."""
    lost = max(0, len(row["ids"]) - max_length)
    return {
        **row,
        "ids": row["ids"][:max_length],
        "targets": row["targets"][:max_length],
        "cut": lost,
    }


def words_of(message: dict) -> str:
    """What a turn says; its content may come in parts."""
    content = message["content"]
    return (
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    )


def saying(message: dict, words: str) -> dict:
    """The same turn with other words."""
    parts = not isinstance(message["content"], str)
    return {**message, "content": [{"type": "text", "text": words}] if parts else words}


def render(tokenizer: Any, messages: list[dict], ask: bool) -> str:
    """The conversation as text; with `ask` it ends where the model is to go on."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)


def ask(question: str, tokenizer: Any) -> dict:
    """What the model is given to answer: the very prompt that training puts before an answer."""
    return {"ids": prompt_ids(tokenizer, [{"role": "user", "content": question}])}


def prompt_ids(tokenizer: Any, messages: list[dict]) -> list[int]:
    """The prompt after these turns, the last of them the user's."""
    answer = saying({**messages[-1], "role": "assistant"}, MARK)
    return answer_ids(tokenizer, messages, answer, "the question")[0]


def opening(tokenizer: Any, parts: bool = False) -> int | None:
    """The token after which the words of an answer begin, where the template writes something before them.

    Qwen3 opens with an empty thinking block, gpt-oss with a channel's name: trained, but no part of what is scored.
    """
    question = [{"role": "user", "content": [{"type": "text", "text": "?"}] if parts else "?"}]
    asked = render(tokenizer, question, True)
    answer = saying({**question[0], "role": "assistant"}, MARK)
    lead = render(tokenizer, [*question, answer], False).rpartition(MARK)[0]
    ids = (
        tokenizer(lead[len(asked) :], add_special_tokens=False)["input_ids"]
        if lead.startswith(asked)
        else []
    )
    added = set(tokenizer.get_added_vocab().values())
    return next((i for i in reversed(ids) if i in added), None)


def answer_ids(
    tokenizer: Any, history: list[dict], message: dict, where: str
) -> tuple[list[int], list[int]]:
    """(prompt, answer) as token ids; the answer runs through its end-of-turn token.

    Raises `BadRow` when the template refuses the conversation, `LorakitError` when it never ends an answer.
    """
    try:
        asked, whole = (
            render(tokenizer, history, True),
            render(tokenizer, [*history, message], False),
        )
        marked = render(tokenizer, [*history, saying(message, MARK)], False)
    except Exception as error:  # Jinja's own errors and those a template raises itself
        raise BadRow(f"the chat template refuses it: {error}") from None
    head, found, tail = marked.rpartition(MARK)
    if not found:
        raise LorakitError(
            f"{where}: the chat template of this model leaves the words of an answer out (it was "
            "written for images and text in parts). Use a model whose template takes plain text"
        )
    # A template may ask otherwise than it renders ("<think>"): trained from the content on.
    before = asked if whole.startswith(asked) else os.path.commonprefix([head, whole])
    read = encoded(tokenizer, whole)
    ids, offsets = read.ids, read.offsets
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    closing = len(whole) - len(tail) if whole.endswith(tail) else len(before)
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
        and not whole[offsets[end + 1][0] - 1].isspace()
    ):
        end += 1
    ids, until = ids[: end + 1], offsets[end][1]
    prompt = encoded(tokenizer, before).ids
    if ids[: len(prompt)] == prompt:
        return prompt, ids[len(prompt) :]
    # A token joins the prompt's last character to the answer's first. When asked, the model sees the prompt alone.
    rest = encoded(tokenizer, whole[len(before) : until]).ids
    if tokenizer.decode(prompt + rest) == tokenizer.decode(ids):
        return prompt, rest
    start = next(i for i, (a, _) in enumerate(offsets) if a >= len(before))
    return ids[:start], ids[start:]


def encoded(tokenizer: Any, words: str) -> Any:
    """Ids and offsets of all the words, no special tokens added. transformers' own call takes 1.7 times as long."""
    raw = tokenizer.backend_tokenizer
    if raw.truncation or raw.padding:  # as its file has them, or another call
        raw.no_truncation()
        raw.no_padding()
    return raw.encode(words, add_special_tokens=False)


def guard(rows: Iterable[dict], tokenizer: Any) -> None:
    """Refuses rows of which no token, or no end token, is trained."""
    rows = list(rows)
    if not any(any(row["targets"]) for row in rows):
        raise LorakitError(
            "no token is trained: every answer is empty or cut away; raise max_length"
        )
    if not stop_ids(rows, tokenizer):
        raise LorakitError(
            "no end-of-turn token is trained: max_length cuts the end of every answer; raise it"
        )


def stop_ids(rows: Iterable[dict], tokenizer: Any) -> list[int]:
    """The tokens that end an answer in these rows: what generation stops at."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    return sorted({row["ids"][-1] for row in rows if not row["cut"]} & special)

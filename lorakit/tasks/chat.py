"""Conversations: the assistant's tokens are trained, each answer's end-of-turn token included, nothing else.

Any stock chat template will do, it needs no `{% generation %}` marks. An answer is what the template adds to the very
prompt the model will be given when asked. Templates that render earlier turns anew (Qwen3 and gpt-oss drop old
thoughts) cannot show all answers in one text as they would be asked for; such a conversation becomes a row per answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lorakit.common.errors import BadRow, LorakitError
from lorakit.data.example import Example
from lorakit.tasks import tools
from lorakit.tasks.template import MARK, answer_of, bare, render, saying, words_of

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
    "weights": ["float32"],
    "lost": ["string"],
}
SETTINGS = ("reasoning",)


def encode(
    example: Example, tokenizer: Any, max_length: int, reasoning: str = "auto"
) -> list[dict]:
    """Rows of one conversation; one unless the template renders earlier turns anew."""
    messages, offered = example.fields["messages"], example.fields.get("tools")
    if offered:
        tokenizer = tools.reader(tokenizer)
        messages = tools.conversation(tokenizer, messages)
    return encode_turns(
        example, messages, tokenizer, max_length, reasoning=reasoning, offered=offered
    )


def encode_turns(
    example: Example,
    messages: list[dict],
    tokenizer: Any,
    max_length: int,
    seen: Callable[[list[dict], list[int]], list[int]] = lambda turns, prompt: prompt,
    reasoning: str = "auto",
    offered: list[dict] | None = None,
) -> list[dict]:
    """The same for given turns; `seen` makes of the prompt's tokens what the model is given, pictures included.

    `offered`: the tools it may call. Of a row with calls the last one is asked for when it is scored.
    An answer of weight 0 is not trained; other weights stand in `weights` (T,), where a row has some.
    """
    rows: list[dict] = []
    calls = any("tool_calls" in message for message in messages)
    lost: set[str] = set()
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        weight = message.get("weight", 1.0)
        found = answer_of(tokenizer, messages[:turn], message, example.where, reasoning, offered)
        prompt, answer = seen(messages[:turn], found.prompt), found.ids
        row = rows[-1] if rows and prompt[: len(rows[-1]["ids"])] == rows[-1]["ids"] else None
        if row is None:
            row = {"ids": [], "targets": [], "weights": []}
            rows.append(row)
        before = len(prompt) - len(row["ids"])
        row["targets"] += [False] * before + [weight > 0] * len(answer)
        row["weights"] += [1.0] * before + [weight or 1.0] * len(answer)
        row["ids"] = prompt + answer
        if not weight:
            continue
        lost |= found.lost
        called = "tool_calls" in message
        if len(prompt) < max_length and (called or not calls):
            said = tokenizer.decode(answer, skip_special_tokens=True).strip() if called else ""
            row |= {
                "answer_start": len(prompt),
                "prompt": words_of(messages[turn - 1]),
                "reference": said or words_of(bare(tokenizer, message)),
            }
    kept = [cut(row, max_length) for row in rows if any(row["targets"][:max_length])]
    if not kept:
        longest = max(len(row["ids"]) for row in rows)
        raise BadRow(
            f"no answer token within max_length={max_length} (the row has {longest} tokens)"
        )
    where = {"file": example.file, "row": example.row}
    return [{**row, **where, **({"lost": sorted(lost)} if lost else {})} for row in kept]


def cut(row: dict, max_length: int) -> dict:
    """The row's first `max_length` tokens; `cut` says how many were lost."""
    lost = max(0, len(row["ids"]) - max_length)
    weights = row.get("weights", [])[:max_length]
    rest = {k: v for k, v in row.items() if k != "weights"}
    return {
        **rest,
        "ids": row["ids"][:max_length],
        "targets": row["targets"][:max_length],
        "cut": lost,
        **({"weights": weights} if any(w != 1 for w in weights) else {}),
    }


def ask(question: str, tokenizer: Any) -> dict:
    """What the model is given to answer: the very prompt that training puts before an answer."""
    return {"ids": prompt_ids(tokenizer, [{"role": "user", "content": question}])}


def prompt_ids(tokenizer: Any, messages: list[dict]) -> list[int]:
    """The prompt after these turns, the last of them the user's."""
    answer = saying({**messages[-1], "role": "assistant"}, MARK)
    return answer_of(tokenizer, messages, answer, "the question").prompt


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

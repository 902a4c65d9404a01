"""OpenAI's chat form (https://platform.openai.com/docs/api-reference/chat): a list of turns.

{"messages": [{"role": "user", "content": "Is the well safe?"}, {"role": "assistant", "content": "Boil it first."}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit.common.errors import BadRow
from lorakit.data import markup
from lorakit.data.schemas import SYSTEM, column, marks, nested, text_of

GIVES = "messages"
RICHNESS = 60
REQUIRED = (("messages",),)
OPTIONAL = SYSTEM + marks.NAMES + ("tools", "functions")
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "chatbot", "bot", "ai"),
        "assistant",
    ),
    "prompter": "user",
}
TOOLS = (
    "tool", "tool_call", "tool_calls", "tool_response", "tool_responses", "tool_result",
    "function", "function_call", "function_response", "observation", "ipython",
)  # fmt: skip
SPEAKER = ("speaker", "author")  # other names of `role`
SAID = ("text", "parts", "message")  # and of `content`
PAIRS = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"))
THOUGHTS = ("reasoning_content", "thinking")
TEXT = ("text", "input_text", "output_text")  # types of parts
MEDIA = {
    "image": "an image part",
    "audio": "an audio part",
    "video": "a video part",
    "file": "a file part",
}
PLACES = ("<image>", "<audio>", "<video>")  # marks of what is shown or heard there
CURE = "leave the row out or put it in words"


def convert(fields: dict) -> dict:
    return conversation(fields, column(fields, REQUIRED[0]))


def conversation(fields: Mapping[str, Any], name: str) -> dict[str, list[dict[str, Any]]]:
    """`messages` of a column of turns: an optional system turn, then user and assistant in turn, an assistant last.

    A turn says who speaks in `role` or `from`, and what in `content` or `value`. A blank system turn is none.
    """
    given = nested(fields[name])
    if not isinstance(given, list) or not given:
        raise BadRow(
            f"{name!r} is {'empty' if given == [] else type(given).__name__}, expected a list of turns"
        )
    for offered in ("tools", "functions"):
        if fields.get(offered) not in (None, [], {}, "", "[]"):
            raise BadRow(
                f"{offered!r} offers tools to the model, which cannot be trained; remove the column to train "
                "the words alone"
            )
    kept = [turn(each, number) for number, each in enumerate(_single(given), 1)]
    check_order([each["role"] for each in kept])
    kept = marks.marked(fields, kept)
    told = text_of(_told(fields), SYSTEM, empty=True)
    if kept[0]["role"] != "system":
        kept.insert(0, {"role": "system", "content": told})
    return {"messages": [each for each in kept if each["content"].strip()]}


def _told(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same fields, a system column of parts (Bedrock, Gemini) as text."""
    name = next((n for n in SYSTEM if isinstance(fields.get(n), (list, dict))), "")
    value = fields.get(name)
    parts = value.get("parts") if isinstance(value, dict) else value
    if not isinstance(parts, list) or not all(isinstance(p, dict) and "text" in p for p in parts):
        return fields
    return {**fields, name: "\n".join(text_of(part, ("text",)) for part in parts)}


def _single(given: list[Any]) -> list[Any]:
    """A turn each, where question and answer stand together: `{"human": …, "assistant": …}`, or where words alone do.

    Of words alone the first are the user's (LIMA, UltraChat).
    """
    if len(given) > 1 and all(isinstance(turn, str) for turn in given):
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": words} for i, words in enumerate(given)]
    beside = {"system", *marks.NAMES}
    pair = next(
        (
            p
            for p in PAIRS
            if all(isinstance(t, dict) and {*p} <= t.keys() <= {*p} | beside for t in given)
        ),
        None,
    )
    if pair is None:
        return given
    out = []
    for turn in given:
        told = [{"role": "system", "content": turn["system"]}] if turn.get("system") else []
        asked, said = (
            {"role": r, "content": turn[n]}
            for r, n in zip(("user", "assistant"), pair, strict=True)
        )
        out += [*told, asked, said | {k: turn[k] for k in marks.NAMES if k in turn}]
    return out


def turn(turn: Any, number: int) -> dict[str, Any]:
    """A turn of words: `role`, `content`, reasoning and `weight`. Raises `BadRow` for another."""
    if not isinstance(turn, dict):
        raise BadRow(
            f"turn {number} is {type(turn).__name__}, expected an object with role and content"
        )
    if turn.keys().isdisjoint(("role", "from", *SPEAKER)):
        turn = {str(key).lower(): value for key, value in turn.items()}
    for name, usual, others in (("role", "from", SPEAKER), ("content", "value", SAID)):
        other = next((other for other in others if other in turn), None)
        if other and name not in turn and usual not in turn:
            turn = turn | {name: turn[other]}
    said = turn.get("role", turn.get("from"))
    said = said.strip().lower() if isinstance(said, str) else said
    if said in TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise BadRow(
            f"turn {number} calls a tool or is a tool's, which rows of this form cannot train: {CURE}"
        )
    if not isinstance(said, str) or said not in ROLES:
        shown = f"the role {said[:40]!r}" if isinstance(said, str) else "no role"
        raise BadRow(f"turn {number} has {shown}; known: {', '.join([*ROLES][:10])}")
    role = ROLES[said]
    for part in _parts(turn):
        _check_part(part, number)
    words = turn.get("content", turn.get("value"))
    if isinstance(words, str) and words.lstrip().startswith(PLACES):
        raise BadRow(
            f"turn {number} begins with {words.split('>')[0].strip()}>, and the row has nothing to put there: {CURE}"
        )
    try:
        kept: dict[str, Any] = {
            "role": role,
            **_words(turn, blank=role == "system"),
            **weight(turn, role, number),
        }
    except BadRow as error:
        raise BadRow(f"turn {number} ({role}): {error}") from None
    if role == "user" and markup.may_be(kept["content"]):
        inside = markup.turns_of(kept["content"], spoken=False)
        if inside and [turn["role"] for turn in inside] != ["user"]:
            raise BadRow(
                f"turn {number} (user) holds a whole conversation that a chat template was applied to: give "
                "its turns as turns"
            )
        kept["content"] = inside[0]["content"] if inside else kept["content"]
    return kept


def weight(turn: dict, role: str, number: int) -> dict[str, float]:
    """`weight` of an answer whose marks give another than 1."""
    if marks.ANY.isdisjoint(turn) and turn.keys().isdisjoint(marks.DETAIL):
        return {}
    given = marks.weight_of(turn)
    if detail := next((n for n in marks.DETAIL if turn.get(n) not in (None, [])), ""):
        raise BadRow(f"{detail!r} marks parts of a turn, which cannot be trained apart")
    if role != "assistant":
        marks.refuse_user(role, number, next((n for n in marks.TRAINS_ANY if turn.get(n)), ""))
        return {}
    return {} if given in (None, 1) else {"weight": given}


def _parts(turn: dict) -> list:
    content = turn.get("content", turn.get("value"))
    return content if isinstance(content, list) else []


def _check_part(part: Any, number: int) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXT or (isinstance(part, dict) and part.keys() == {"text"}):
        return
    named = f"a part of type {kind[:40]!r}" if isinstance(kind, str) else "a part without a type"
    named = next((words for medium, words in MEDIA.items() if medium in named), named)
    raise BadRow(f"turn {number} has {named}; only text can be trained: {CURE}")


def _words(turn: dict, blank: bool) -> dict[str, str]:
    if parts := _parts(turn):  # a line each, as vLLM and llama.cpp serve them
        content = "\n".join(text_of(part, ("text",)) for part in parts)
    else:
        content = text_of(turn, ("content", "value"), empty=blank)
    return {
        "content": content,
        **{k: text_of(turn, (k,), empty=True) for k in THOUGHTS if turn.get(k) is not None},
    }


def check_order(roles: list[str]) -> None:
    """Raises `BadRow` unless user and assistant take turns, after a system turn where there is one."""
    if "assistant" not in roles:
        raise BadRow("no assistant turn: there is nothing to train")
    if "system" in roles[1:]:
        raise BadRow("a system turn stands first, and once")
    start = roles.index("system") + 1 if "system" in roles else 0
    for place, role in enumerate(roles[start:]):
        if role != ("user", "assistant")[place % 2]:
            raise BadRow(
                f"roles out of order: turn {start + place + 1} is {role}, expected "
                f"{('user', 'assistant')[place % 2]}"
            )
    if roles[-1] != "assistant":
        raise BadRow("the last turn is the user's: there is no answer to it")

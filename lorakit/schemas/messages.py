"""OpenAI's chat form (https://platform.openai.com/docs/api-reference/chat): a list of turns.

{"messages": [{"role": "user", "content": "Is the well safe?"}, {"role": "assistant", "content": "Boil it first."}]}
"""

from __future__ import annotations

from lorakit.errors import BadRow
from lorakit.schemas import text_of

GIVES = "messages"
REQUIRED = (("messages",),)
ROLES = ("system", "user", "assistant")


def convert(fields: dict) -> dict:
    """An optional system turn first, then user and assistant in turn, an assistant last."""
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadRow("'messages' is not a list of turns")
    kept = []
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} is {type(turn).__name__}, expected an object with role and content")
        role = turn.get("role")
        if role not in ROLES:
            raise BadRow(f"turn {number} has the role {role!r}; known: {', '.join(ROLES)}")
        if turn.get("tool_calls"):
            raise BadRow(f"turn {number} calls a tool; tool calls are not supported, leave the row out or put them "
                         "in words")
        try:
            content = text_of(turn, ("content",))
        except BadRow as error:
            raise BadRow(f"turn {number} ({role}): {error}") from None
        extra = {k: turn[k] for k in ("reasoning_content", "thinking") if isinstance(turn.get(k), str)}
        kept.append({"role": role, "content": content, **extra})
    roles = [m["role"] for m in kept]
    if "assistant" not in roles:
        raise BadRow("no assistant turn: there is nothing to train")
    if roles.count("system") > 1 or ("system" in roles and roles[0] != "system"):
        raise BadRow("a system turn stands first, and once")
    spoken = roles[1:] if roles[0] == "system" else roles
    for place, (role, expected) in enumerate(zip(spoken, ("user", "assistant") * len(spoken), strict=False), 1):
        if role != expected:
            raise BadRow(f"roles out of order: turn {place + len(roles) - len(spoken)} is {role}, expected {expected}")
    if spoken[-1] != "assistant":
        raise BadRow("the last turn is the user's: there is no answer to it")
    return {"messages": kept}

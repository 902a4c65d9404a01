"""Ollama's Modelfile: the turns as the chat template writes them, checked by an emulation of Ollama's renderer.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.exporting.ollama import render
from lorakit.models import rendering

MODELFILE = "Modelfile"
QUESTION, ANSWER, SYSTEM = "⟦question⟧", "⟦answer⟧", "⟦system⟧"  # stand for what is said
Message = dict[str, str]


def modelfile(
    tokenizer: Any, stop_ids: Sequence[int], *, name: str, weights: str, chats: bool
) -> tuple[str, list[str]]:
    """(text, notes). The text is empty, and a note says why, where no template of Ollama's writes the same turns.

    Args:
        weights: name of the GGUF file beside it.
        chats: whether the model was trained on turns.
    """
    stops = [tokenizer.convert_ids_to_tokens(int(i)) for i in stop_ids]
    lines = [f"# ollama create {name} -f {MODELFILE}", f"FROM ./{weights}"]
    if chats:
        try:
            lines.append(f'TEMPLATE """{ollama_template(tokenizer, stops)}"""')
        except LorakitError as error:
            return "", [
                f"no {MODELFILE} was written: {error}; llama-server uses the file's own template"
            ]
    else:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join([*lines, "PARAMETER temperature 0"]) + "\n", []


def ollama_template(tokenizer: Any, stops: Sequence[str] = ()) -> str:
    """A template over `.Messages` that writes conversations as the tokenizer's chat template does.

    `stops`: texts of the tokens that end an answer.

    Raises `LorakitError` when there is none: verified on one, two and three questions, with a system turn and without.
    """
    template = _built(tokenizer, stops)
    if '"""' in template:
        raise LorakitError('the chat template holds """, which ends a text in a Modelfile')
    for messages in conversations(tokenizer):
        expected = rendered(tokenizer, messages)
        written = render(template, messages)
        if written != expected:
            turns = " ".join(message["role"] for message in messages)
            raise LorakitError(
                f"the chat template writes the turns ({turns}) as {expected!r}, and no template of Ollama's does"
            )
    return template


def conversations(tokenizer: Any) -> list[list[Message]]:
    """One to three questions, without a system turn and, where the template takes one, with it."""
    found = []
    for system, questions in itertools.product((False, True), (1, 2, 3)):
        messages = [_message("system", "Be  brief {now}.")] if system else []
        for i in range(questions):
            messages.append(_message("user", f"Question {i}?\n  indented"))
            messages.append(_message("assistant", f"Answer {i} – yes."))
        messages.pop()
        if not system or takes_system(tokenizer):
            found.append(messages)
    return found


def takes_system(tokenizer: Any) -> bool:
    """Whether the template writes a system turn, and does not refuse the role or drop it."""
    try:
        turns = [_message("system", SYSTEM), _message("user", QUESTION)]
        return SYSTEM in rendered(tokenizer, turns)
    except Exception:  # Jinja's own errors and those a template raises itself
        return False


def rendered(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The turns as training writes them, asking for an answer, without a first token that the runtime adds itself."""
    text = rendering.rendered(tokenizer, list(messages), add_generation_prompt=True)
    return text.removeprefix(tokenizer.bos_token) if begins_every_text(tokenizer) else text


def begins_every_text(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its first token before every text."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _built(tokenizer: Any, stops: Sequence[str]) -> str:
    """The pieces around each turn, found by rendering turns whose contents are marked."""
    user, answer = _message("user", QUESTION), _message("assistant", ANSWER)
    before, opening = _parted(rendered(tokenizer, [user]), QUESTION)
    _, rest = _parted(rendered(tokenizer, [user, answer, user]), QUESTION)
    between, again = _parted(rest, ANSWER)
    # `opening` is what closes a question and asks for an answer; `between` closes it and opens the answer's turn.
    after, _ = _parted(again, QUESTION)
    common = _common_start(opening, between)
    ask, lead = opening[len(common) :], between[len(common) :]
    closing = _closing(before, after, stops)
    turn = after[len(closing) :]
    head = before[: len(before) - len(turn)]
    parts = [_system_part(tokenizer, user, head, turn), "{{ range .Messages }}"]
    parts.append(
        f'{{{{ if eq .Role "user" }}}}{_literal(turn)}{{{{ .Content }}}}{_literal(common)}'
    )
    parts.append(
        f'{{{{ else if eq .Role "assistant" }}}}{_literal(lead)}{{{{ .Content }}}}{_literal(closing)}'
    )
    parts.append("{{ end }}{{ end }}")
    return "".join(parts) + _literal(ask)


def _system_part(tokenizer: Any, user: Message, head: str, turn: str) -> str:
    """What stands before the first question: with a system turn its text, else what the template puts there."""
    if not takes_system(tokenizer):
        return _literal(head)
    text = rendered(tokenizer, [_message("system", SYSTEM), user])
    opened, rest = _parted(text, SYSTEM)
    closed, _ = _parted(rest, QUESTION)
    if not closed.endswith(turn):
        raise LorakitError(
            "the chat template writes the first question otherwise after a system turn"
        )
    closed = closed[: len(closed) - len(turn)]
    with_system = f"{_literal(opened)}{{{{ .System }}}}{_literal(closed)}"
    return f"{{{{ if .System }}}}{with_system}{{{{ else }}}}{_literal(head)}{{{{ end }}}}"


def _parted(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found:
        raise LorakitError("the chat template leaves out what a turn says, or changes it")
    return before, after


def _common_start(one: str, two: str) -> str:
    count = next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
    return one[:count]


def _closing(before: str, after: str, stops: Sequence[str]) -> str:
    """The part of what stands between an answer and the next question that closes the answer.

    Through a stop token and the space behind it, where what is left opens the first question as well; else what is
    before the longest text that does.
    """
    for stop in stops:
        if after.startswith(stop):
            rest = after[len(stop) :].lstrip()
            if before.endswith(rest):
                return after[: len(after) - len(rest)]
    count = next(
        (i for i, (a, b) in enumerate(zip(before[::-1], after[::-1])) if a != b),
        min(len(before), len(after)),
    )
    return after[: len(after) - count]


def _literal(text: str) -> str:
    """Text in a Go template: braces that would open an action are written by one."""
    return text.replace("{{", '{{ "{{" }}')

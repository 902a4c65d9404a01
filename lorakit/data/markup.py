"""Text that a chat template has been applied to already, back into its turns.

ChatML, Llama 2 and 3, Gemma, Phi, Zephyr, and Alpaca's headings. Trained as it stands, such text would end up inside
another template, its control tokens as plain words.
"""

from __future__ import annotations

import re

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
ROLE = "(" + "|".join(ROLES) + ")"
# A header before each turn's words, and the token behind them.
HEADED = (
    (re.compile(rf"<\|im_start\|>{ROLE}\n"), "<|im_end|>"),
    (re.compile(rf"<\|start_header_id\|>{ROLE}<\|end_header_id\|>\n\n"), "<|eot_id|>"),
    (re.compile(rf"<start_of_turn>{ROLE}\n"), "<end_of_turn>"),
    (re.compile(rf"<\|{ROLE}\|>\n"), "<|end|>"),
    (re.compile(rf"<\|{ROLE}\|>\n"), "</s>"),
)
STARTS = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)?\s*")
ENDS = re.compile(r"\s*(?:</s>|<eos>|<\|end_of_text\|>|<\|endoftext\|>)?\s*\Z")
LLAMA2 = re.compile(
    r"\s*(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?:</s>|(?=<s>|\[INST\])|\Z)", re.DOTALL
)
SYSTEM2 = re.compile(r"\s*<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)
ALPACA = re.compile(
    r"(.*?)###\s*(?:Instruction|Human|User):\s*(.*?)(?:\n+###\s*Input:\s*(.*?))?"
    r"\n+###\s*(?:Response|Assistant|Output):\s*(.*)",
    re.DOTALL,
)
SIGN = re.compile(
    r"<\|im_start\|>|\[INST\]|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant|system)\|>"
    r"|###\s*(?:Response|Assistant|Output):"
)


def may_be(text: str) -> bool:
    """Whether a text holds a sign of one of the formats."""
    return ("<" in text or "[INST]" in text or "###" in text) and SIGN.search(text) is not None


def turns_of(text: str) -> list[dict[str, str]] | None:
    """The turns of a text in one of the common formats, None for any other text."""
    if not may_be(text):
        return None
    for header, end in HEADED:
        if found := _headed(text, header, end):
            return found
    return _llama2(text) or _alpaca(text)


def _headed(text: str, header: re.Pattern, end: str) -> list[dict[str, str]] | None:
    before, *parts = header.split(text)
    if not parts or not STARTS.fullmatch(before):
        return None
    turns = []
    for role, words in zip(parts[::2], parts[1::2], strict=True):
        said, _, rest = words.partition(end)
        if rest.strip() and not ENDS.fullmatch(rest):
            return None
        turns.append({"role": ROLES[role], "content": ENDS.sub("", said)})
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        turns.pop()  # the opening of an answer that is not there
    return turns


def _llama2(text: str) -> list[dict[str, str]] | None:
    turns: list[dict[str, str]] = []
    place = 0
    while match := LLAMA2.match(text, place):
        asked, said = match.groups()
        if not turns and (system := SYSTEM2.match(asked)):
            turns.append({"role": "system", "content": system[1].strip()})
            asked = asked[system.end() :]
        turns.append({"role": "user", "content": asked.strip()})
        if said.strip():
            turns.append({"role": "assistant", "content": said.strip()})
        place = match.end()
    return turns if turns and not text[place:].strip() else None


def _alpaca(text: str) -> list[dict[str, str]] | None:
    match = ALPACA.fullmatch(text)
    if match is None or text.count("###") > 3:
        return None
    before, instruction, extra, said = match.groups()
    asked = "\n\n".join(part.strip() for part in (instruction, extra or "") if part.strip())
    before = STARTS.sub("", before, count=1).strip()
    if before.startswith("Below is an instruction"):
        before = ""  # Alpaca's own preamble, which every row has
    turns = [{"role": "system", "content": before}] if before else []
    turns.append({"role": "user", "content": asked})
    said = ENDS.sub("", said).strip()
    return [*turns, {"role": "assistant", "content": said}] if said else turns

"""Text that a chat template has been applied to already, back into its turns.

ChatML, Llama 2 and 3, Mistral, Gemma, Phi, Zephyr, Command R, DeepSeek, gpt-oss, and text with headings: Alpaca's,
Guanaco's, Vicuna's, HH-RLHF's. Trained as it stands, such text would end up inside
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
    "chatbot": "assistant",
}
ROLE = "(" + "|".join(ROLES) + ")"
# A header before each turn's words, and the token behind them.
HEADED = (
    (re.compile(rf"<\|im_start\|>{ROLE}\n"), "<|im_end|>"),
    (re.compile(rf"<\|start_header_id\|>{ROLE}<\|end_header_id\|>\n\n"), "<|eot_id|>"),
    (re.compile(rf"<start_of_turn>{ROLE}\n"), "<end_of_turn>"),
    (re.compile(rf"<\|{ROLE}\|>\n"), "<|end|>"),
    (re.compile(rf"<\|{ROLE}\|>\n"), "</s>"),
    (re.compile(rf"<\|im_start\|>{ROLE}<\|im_sep\|>"), "<|im_end|>"),
    (re.compile(rf"<\|start\|>{ROLE}(?:<\|channel\|>final)?<\|message\|>"), "<|end|>"),
    (
        re.compile(r"<\|START_OF_TURN_TOKEN\|><\|(USER|CHATBOT|SYSTEM)_TOKEN\|>"),
        "<|END_OF_TURN_TOKEN|>",
    ),
    (re.compile(r"<｜(User|Assistant)｜>"), "<｜end▁of▁sentence｜>"),
)
BEGINS = r"<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<BOS_TOKEN>|<｜begin▁of▁sentence｜>"
CLOSES = r"</s>|<eos>|<\|end_of_text\|>|<\|endoftext\|>|<\|return\|>"
STARTS = re.compile(rf"\s*(?:{BEGINS})?\s*")
ENDS = re.compile(rf"\s*(?:{CLOSES})?\s*\Z")
# What stands at the ends of words that were written for a model as they are.
FIRST = re.compile(rf"\s*(?:{BEGINS})\s*")
LAST = re.compile(rf"\s*(?:{CLOSES}|<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end\|>)\s*\Z")
MISTRAL = re.compile(r"\s*(?:<s>)?\s*\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", re.DOTALL)
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
    r"|###\s*(?:Response|Assistant|Output):|<\|start\|>|<\|START_OF_TURN_TOKEN\|>|<｜User｜>"
    r"|\n\nAssistant:|\bASSISTANT:"
)
# Speakers by name: Guanaco, HH-RLHF, Vicuna.
SPEAKERS = (
    re.compile(r"\s*###\s*(Human|User|Assistant|System):\s*"),
    re.compile(r"(?:\A\s*|\s*\n\n)(Human|Assistant):"),
    re.compile(r"(?:\A|\s+|(?<=</s>))(USER|ASSISTANT):"),
)
# The same of whole texts, a line each; inside a prompt they may be examples for the model.
PAIRS = (("User", "Assistant"), ("Human", "AI"), ("Question", "Answer"), ("Q", "A"))
LINES = tuple(re.compile(rf"(?:\A|\n)\s*({asks}|{says}):") for asks, says in PAIRS)
SPOKEN = ROLES | {asks.lower(): "user" for asks, _ in PAIRS}
SPOKEN |= {says.lower(): "assistant" for _, says in PAIRS}


def may_be(text: str) -> bool:
    """Whether a text holds a sign of one of the formats."""
    near = "<" in text or "[INST]" in text or "###" in text or "ssistant:" in text
    return (near or "ASSISTANT:" in text) and SIGN.search(text) is not None


def turns_of(text: str, spoken: bool = True) -> list[dict[str, str]] | None:
    """The turns of a text in one of the common formats, None for any other text.

    Without `spoken` not those whose speakers are words alone, which people also write in a message.
    """
    if not may_be(text):
        return None
    for header, end in HEADED:
        if found := _headed(text, header, end):
            return found
    found = _llama2(text) or _alpaca(text)
    for header in SPEAKERS if spoken else ():
        found = found or speakers_of(text, header)
    return found


def lines_of(text: str) -> list[dict[str, str]] | None:
    """The turns of a text like "Question: …\nAnswer: …", None for any other text."""
    found = (speakers_of(text, header) for header in LINES if header.match(text))
    return next((turns for turns in found if turns and turns[0]["role"] == "user"), None)


def _headed(text: str, header: re.Pattern, end: str) -> list[dict[str, str]] | None:
    before, *parts = header.split(text)
    if not parts or not STARTS.fullmatch(before):
        return None
    turns = []
    for role, words in zip(parts[::2], parts[1::2], strict=True):
        said, _, rest = words.partition(end)
        role = role.lower()
        if rest.strip() and not ENDS.fullmatch(rest):
            return None
        turns.append({"role": ROLES[role], "content": ENDS.sub("", said)})
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        turns.pop()  # the opening of an answer that is not there
    return turns


def _llama2(text: str) -> list[dict[str, str]] | None:
    turns: list[dict[str, str]] = []
    place = 0
    if (told := MISTRAL.match(text)) is not None:
        turns, place = [{"role": "system", "content": told[1].strip()}], told.end()
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


def speakers_of(text: str, header: re.Pattern = SPEAKERS[1]) -> list[dict[str, str]] | None:
    """The turns of a text whose speakers stand before their words; words before the first are the system's.

    None unless user and assistant speak in turn, the user first.
    """
    before, *parts = header.split(text)
    roles = [SPOKEN[role.lower()] for role in parts[::2]]
    turns = [
        {"role": role, "content": ENDS.sub("", words).strip()}
        for role, words in zip(roles, parts[1::2], strict=True)
    ]
    spoken = [role for role in roles if role != "system"]
    if len(spoken) < 2 or any(r != ("user", "assistant")[i % 2] for i, r in enumerate(spoken)):
        return None
    if before := STARTS.sub("", before, count=1).strip():
        turns.insert(0, {"role": "system", "content": before})
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()  # the opening of an answer that is not there
    return turns


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

"""Models to choose from: for what, how large, in which languages, under which licence, and whether one fits here."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.machine.hardware import Facts
from lorakit.models.spec import known

# name -> (parameters in billions, what for, languages), as the models' cards say.
ABOUT = {
    "tiny": (0.0013, "a toy to try the buttons; its answers mean nothing", "simple English"),
    "smollm2-135m": (0.135, "short answers and labels, also on a CPU", "English"),
    "gemma-3-270m": (0.27, "labels and extraction, also on a CPU", "140 languages"),
    "smollm2-360m": (0.36, "short answers and labels, also on a CPU", "English"),
    "qwen3-0.6b": (0.6, "chat, extraction, labels", "100 languages"),
    "gemma-3-1b": (1.0, "chat and writing", "140 languages"),
    "llama-3.2-1b": (1.24, "chat and writing", "8 languages, with German"),
    "qwen3-1.7b": (1.7, "chat, reasoning, extraction", "100 languages"),
    "smollm2-1.7b": (1.7, "chat and writing", "English"),
    "llama-3.2-3b": (3.2, "chat and writing", "8 languages, with German"),
    "phi-3-mini": (3.8, "reasoning", "English"),
    "qwen3-4b": (4.0, "chat, reasoning, extraction", "100 languages"),
    "gemma-3-4b": (4.3, "chat; reads pictures", "140 languages"),
    "gemma-3n-e2b": (5.4, "chat; reads pictures", "140 languages"),
    "mistral-7b": (7.2, "chat and writing", "mostly English"),
    "gemma-3n-e4b": (7.8, "chat; reads pictures", "140 languages"),
    "qwen3-8b": (8.2, "chat, reasoning, extraction", "100 languages"),
    "gpt-oss-20b": (20.9, "reasoning", "mostly English"),
    "smolvlm-256m": (0.26, "questions about pictures", "English"),
    "smolvlm-500m": (0.5, "questions about pictures", "English"),
    "qwen2.5-vl-3b": (3.8, "questions about pictures", "many languages"),
    "qwen2.5-vl-7b": (8.3, "questions about pictures", "many languages"),
    "blip-base": (0.25, "captions of pictures", "English"),
    "vit-base": (0.086, "sorts pictures into classes", ""),
    "vit-large": (0.3, "sorts pictures into classes", ""),
    "swin-tiny": (0.028, "sorts pictures into classes", ""),
    "distilbert": (0.066, "sorts texts into classes", "English"),
    "whisper-tiny": (0.039, "speech to text", "99 languages"),
    "whisper-base": (0.074, "speech to text", "99 languages"),
    "whisper-small": (0.24, "speech to text", "99 languages"),
    "whisper-medium": (0.77, "speech to text", "99 languages"),
}
CHATS = ("qwen3-4b", "qwen3-1.7b", "qwen3-0.6b", "smollm2-135m")  # recommended, the largest first


@dataclass(frozen=True)
class Model:
    """What a person needs to know to choose a model.

    Attributes:
        name: what to write as `model`.
        billions: parameters in billions.
        purpose: what it is good for.
        languages: which it knows.
        licence: under which it may be used.
        page: its hub id; empty when it comes with lorakit.
        gated: whether its terms have to be accepted on that page first.
    """

    name: str
    billions: float
    purpose: str
    languages: str
    licence: str
    page: str
    gated: bool

    def memory(self, facts: Facts) -> float:
        """Roughly the bytes that LoRA training needs: 4-bit weights on a card, two bytes a weight elsewhere.

        `lorakit plan` counts exactly, for the rows at hand.
        """
        per_weight = 0.75 if facts.device == "cuda" else 2.0 if facts.device == "mps" else 4.0
        return self.billions * 1e9 * per_weight + 1.2e9

    def fits(self, facts: Facts) -> bool:
        """Whether it can most likely be trained on this machine."""
        return self.memory(facts) <= 0.9 * facts.device_memory

    @property
    def size(self) -> str:
        """`135 M`, `4 B`"""
        if self.billions < 1:
            return f"{self.billions * 1000:.3g} M"
        return f"{self.billions:.2g} B"


def catalogue() -> list[Model]:
    """Every model that lorakit knows by name and something is known of, the smallest first."""
    specs = known()
    return [
        Model(
            name,
            billions,
            purpose,
            languages,
            specs[name].licence.removesuffix(" (accepted on the model's page)"),
            specs[name].path if name != "tiny" else "",
            "accepted on the model's page" in specs[name].licence,
        )
        for name, (billions, purpose, languages) in sorted(ABOUT.items(), key=lambda e: e[1][0])
        if name in specs
    ]


def recommended(facts: Facts) -> Model:
    """The largest of a few good ones for chats that trains well on this machine, of a CPU a small one."""
    models = {m.name: m for m in catalogue()}
    if facts.device == "cpu":
        return models[CHATS[-1]]
    return next((models[n] for n in CHATS if models[n].fits(facts)), models[CHATS[-1]])

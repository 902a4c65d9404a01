"""Ten words for voices that do not exist: each word a fixed short melody of vowels and hisses, sung by four "speakers".

    python data/make_digits.py --out data/digits

A speaker has a pitch, a pace and a size of the mouth; each take differs a little and has a noise of its own. The same
seed always gives the same samples: the numbers of `RandomState` never change (NumPy's NEP 19).
"""

from __future__ import annotations

import argparse
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RATE, TAKES = 8_000, 2  # samples a second; takes of each word by each speaker
# A word is its syllables: a vowel and its pitch in semitones above the speaker's; `s` hisses, `t` stops the breath.
WORDS = {
    "zero": "s e0 o-4",
    "one": "o-3 a2 n-1",
    "two": "t u3 u0",
    "three": "t i0 i5",
    "four": "s o4 o-2",
    "five": "s a0 i4",
    "six": "s i2 t s",
    "seven": "s e4 e0 n-3",
    "eight": "e5 i1 t",
    "nine": "n-2 a3 i0 n2",
}
# The two frequencies, in Hz, at which a mouth in this shape resounds, and how loud it is.
VOWELS = {
    "a": (760, 1240, 1.0),
    "e": (520, 1850, 0.9),
    "i": (300, 2250, 0.8),
    "o": (480, 900, 0.95),
    "u": (320, 750, 0.8),
    "n": (260, 1100, 0.45),
}
SPEAKERS = {
    "ada": (212, 1.1, 1.14),
    "ben": (108, 0.92, 0.97),
    "eva": (178, 0.98, 1.07),
    "tom": (134, 1.16, 1.0),
}


def spoken(word: str, speaker: str, random: np.random.RandomState) -> np.ndarray:
    """(samples,) int16"""
    pitch, pace, mouth = SPEAKERS[speaker]
    pitch, pace = pitch * 2 ** (random.uniform(-1, 1) / 12), pace * random.uniform(0.9, 1.12)
    parts = [
        syllable(part, pitch, pace * random.uniform(0.94, 1.06), mouth, random)
        for part in WORDS[word].split()
    ]
    still = [np.zeros(int(RATE * random.uniform(0.02, 0.06))) for _ in range(2)]
    sound = np.concatenate([still[0], *parts, still[1]])
    sound *= random.uniform(0.4, 0.8) / abs(sound).max()
    sound += random.normal(0, random.uniform(0.002, 0.012), len(sound))
    return (sound.clip(-1, 1) * 32767).astype("<i2")


def syllable(
    part: str, pitch: float, pace: float, mouth: float, random: np.random.RandomState
) -> np.ndarray:
    """(samples,) of a vowel such as `a2`, of a hiss or of a stop"""
    if part == "t":
        return np.concatenate([np.zeros(int(0.03 * RATE / pace)), hiss(0.015, pace, random) * 0.5])
    if part == "s":
        return hiss(0.07, pace, random) * 0.22
    low, high, loud = VOWELS[part[0]]
    time = np.arange(int(0.13 * RATE / pace)) / RATE
    base = pitch * 2 ** (int(part[1:]) / 12) * (1 + 0.012 * np.sin(2 * np.pi * 5.5 * time))
    phase = 2 * np.pi * np.cumsum(base) / RATE
    sound = np.zeros(len(time))
    for k in range(1, int(3600 / base.max()) + 1):
        hertz = k * base.mean() / mouth
        resounds = (
            1 / (1 + ((hertz - low) / 110) ** 2) + 0.6 / (1 + ((hertz - high) / 170) ** 2) + 0.02
        )
        sound += resounds * np.sin(k * phase)
    return loud * sound / abs(sound).max() * swell(len(time), 0.025)


def hiss(seconds: float, pace: float, random: np.random.RandomState) -> np.ndarray:
    """(samples,) of noise, its low part taken away"""
    noise = random.normal(0, 1, int(seconds * RATE / pace) + 1)
    return np.diff(noise) / 2 * swell(len(noise) - 1, 0.008)


def swell(samples: int, seconds: float) -> np.ndarray:
    """From silence to full and back, each in so many seconds."""
    edge = np.minimum(np.arange(samples), np.arange(samples)[::-1]) / (seconds * RATE)
    return np.sin(np.pi / 2 * edge.clip(0, 1)) ** 2


def recordings(seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, samples): `seven_ada_1.wav` is the word, who says it, and which take it is."""
    for w, word in enumerate(WORDS):
        for s, speaker in enumerate(SPEAKERS):
            for take in range(TAKES):
                yield (
                    f"{word}_{speaker}_{take}.wav",
                    spoken(word, speaker, np.random.RandomState([seed, w, s, take])),
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for count, (name, samples) in enumerate(recordings(options.seed), 1):
        with wave.open(str(options.out / name), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
            file.writeframes(samples.tobytes())
    print(f"wrote {count} recordings to {options.out}")


if __name__ == "__main__":
    main()

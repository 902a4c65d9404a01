"""Small pictures of maize leaves, drawn: healthy, or with rust, blight or spots; several shots of each leaf.

    python data/make_leaves.py --out data/leaves --captions data/leaf_captions.csv

A leaf keeps its shape and its marks; each shot has a place, a size, a light and a ground of its own. The same seed
always gives the same pixels: the numbers of `RandomState` never change (NumPy's NEP 19).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, FINE = 64, 3  # pixels of a picture's side; drawn so many times finer
LEAVES, SHOTS = 10, 4  # of each class; of each leaf
# For each class: how many marks where they are few and where they are many; half their length and width, in halves of
# a leaf's length; the colours of halo, rim and middle.
MARKS = {
    "healthy": ((0, 0), (0, 0), (0, 0), ()),
    "rust": (
        (22, 60),
        (0.02, 0.045),
        (0.014, 0.026),
        ((150, 128, 50), (120, 52, 20), (196, 96, 30)),
    ),
    "blight": (
        (2, 5),
        (0.2, 0.38),
        (0.045, 0.075),
        ((146, 140, 66), (104, 78, 46), (190, 172, 134)),
    ),
    "spot": (
        (6, 16),
        (0.05, 0.085),
        (0.05, 0.085),
        ((196, 186, 70), (88, 48, 34), (206, 192, 160)),
    ),
}
WORDS = {
    "healthy": ("a fresh", "an even"),
    "rust": ("a few rust-brown pustules", "many rust-brown pustules"),
    "blight": ("a few long grey-brown lesions", "many long grey-brown lesions"),
    "spot": ("a few round spots with dark rims", "many round spots with dark rims"),
}
# For each ground its colour, how many patches it has down and across, and how far they differ in brightness.
GROUNDS = {
    "soil": ((112, 84, 62), (22, 22), 0.22),
    "straw": ((196, 174, 120), (30, 5), 0.16),
    "grass": ((72, 98, 48), (5, 26), 0.25),
    "the sky": ((168, 192, 214), (3, 3), 0.08),
    "a table": ((150, 148, 146), (2, 2), 0.05),
}


def leaf(kind: str, number: int, seed: int) -> dict:
    """Shape, colour and marks of one leaf; a mark is (place along, place across, half length, half width)."""
    random = np.random.RandomState([seed, number])
    amount = int(random.randint(2))
    counts, long, wide, colours = MARKS[kind]
    n = int(counts[amount] * random.uniform(0.85, 1.2))
    along = np.linspace(-0.8, 0.8, n + 2)[1:-1] + random.uniform(
        -0.05, 0.05, n
    )  # from end to end, in no row
    across = random.uniform(-0.75, 0.75, n)
    return {
        "kind": kind,
        "number": number,
        "amount": amount,
        "colours": colours,
        "bend": random.uniform(-0.3, 0.3),
        "width": random.uniform(0.27, 0.38),
        "tip": random.uniform(-0.25, 0.25),
        "green": np.array([62, 128, 44]) + random.uniform(-22, 22, 3) * (1, 1, 0.6),
        "marks": np.stack(
            [along, across, random.uniform(*long, n), random.uniform(*wide, n)], axis=1
        ),
    }


def shot(of: dict, number: int, seed: int) -> tuple[np.ndarray, str]:
    """((64, 64, 3) uint8, the ground it lies on)"""
    random = np.random.RandomState([seed, of["number"], number + 1])
    name = [*GROUNDS][random.randint(len(GROUNDS))]
    y, x = (np.mgrid[: SIDE * FINE, : SIDE * FINE] + 0.5) / (
        SIDE * FINE
    ) * 2 - 1  # both (H, W), from -1 to 1
    turn, size = random.uniform(-np.pi, np.pi), random.uniform(0.8, 1.15)
    right, down = random.uniform(-0.18, 0.18, 2)
    u = ((x - right) * np.cos(turn) + (y - down) * np.sin(turn)) / size
    v = ((y - down) * np.cos(turn) - (x - right) * np.sin(turn)) / size
    picture = ground(name, random)
    picture *= 1 - 0.45 * inside(of, u - 0.05, v - 0.07, 0.2)[..., None]  # the leaf's shadow
    picture += inside(of, u, v, 0.06)[..., None] * (surface(of, u, v) - picture)
    towards = random.uniform(0, 2 * np.pi)
    light = random.uniform(0.72, 1.15) * (1 + 0.22 * (x * np.cos(towards) + y * np.sin(towards)))
    warmth = 1 + random.uniform(-0.09, 0.09) * np.array([1, 0, -1])
    picture = (
        (picture * light[..., None] * warmth).reshape(SIDE, FINE, SIDE, FINE, 3).mean(axis=(1, 3))
    )
    return (picture + random.normal(0, 1.5, picture.shape)).clip(0, 255).astype(np.uint8), name


def ground(name: str, random: np.random.RandomState) -> np.ndarray:
    """(H, W, 3): a colour, brighter and darker in patches"""
    colour, patches, apart = GROUNDS[name]
    shades = Image.fromarray(random.uniform(1 - apart, 1 + apart, patches).astype(np.float32))
    shades = np.asarray(
        shades.resize((SIDE * FINE, SIDE * FINE), Image.Resampling.BICUBIC), dtype=float
    )
    return shades[..., None] * (np.array(colour) + random.uniform(-14, 14, 3))


def outline(of: dict, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along the leaf, from -1 to 1: where its midrib is, and half its width there."""
    return of["bend"] * u**2, of["width"] * (1 - u**2).clip(0) ** 0.7 * (1 + of["tip"] * u)


def inside(of: dict, u: np.ndarray, v: np.ndarray, soft: float) -> np.ndarray:
    """1 on the leaf, 0 beside it, between them on an edge so wide."""
    middle, half = outline(of, u)
    return ((half - abs(v - middle)) / soft + 0.5).clip(0, 1) * (abs(u) < 1)


def surface(of: dict, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(H, W, 3): green with veins that run along the leaf, a paler midrib, and the marks"""
    middle, half = outline(of, u)
    side = (v - middle) / half.clip(0.02)
    shade = 1 + 0.07 * np.cos(side * 22) - 0.15 * side**2
    leaf = of["green"] * shade[..., None]
    leaf = leaf + (0.55 * np.exp(-((side / 0.09) ** 2)))[..., None] * (
        np.array([150, 176, 104]) - leaf
    )
    for along, across, long, wide in of["marks"]:
        bent, room = outline(of, np.asarray(along))
        far = np.hypot(
            (u - along) / long,
            (v - bent - across * room - 2 * of["bend"] * along * (u - along)) / wide,
        )
        for colour, reach in zip(of["colours"], (1.45, 1.1, 0.75), strict=True):
            leaf = leaf + ((reach - far) / 0.25 + 0.5).clip(0, 1)[..., None] * (
                np.array(colour) - leaf
            )
    return leaf


def said(of: dict, ground: str) -> str:
    """What a caption says: `A maize leaf with many rust-brown pustules, on soil.`"""
    place = f"{'before' if ground == 'the sky' else 'on'} {ground}"
    words = WORDS[of["kind"]][of["amount"]]
    return (
        f"A healthy maize leaf of {words} green, {place}."
        if of["kind"] == "healthy"
        else f"A maize leaf with {words}, {place}."
    )


def pictures(
    seed: int, leaves: int = LEAVES, shots: int = SHOTS
) -> Iterator[tuple[str, np.ndarray, str, int]]:
    """(path, picture, caption, leaf). No two leaves share a number, whatever their class."""
    for number in range(leaves * len(MARKS)):
        of = leaf([*MARKS][number % len(MARKS)], number, seed)
        for i in range(shots):
            picture, ground = shot(of, i, seed)
            yield (
                f"{of['kind']}/{of['kind']}_{number:02}_{i}.png",
                picture,
                said(of, ground),
                number,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--captions", type=Path, help="a table of the pictures, beside their folder"
    )
    options = parser.parse_args()
    rows = []
    for name, picture, caption, number in pictures(options.seed):
        (options.out / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(options.out / name, optimize=True)
        rows.append((f"{options.out.name}/{name}", caption, number))
    print(f"wrote {len(rows)} pictures to {options.out}")
    if options.captions:
        with options.captions.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("image", "caption", "leaf"), *rows])


if __name__ == "__main__":
    main()

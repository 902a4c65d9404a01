"""Film strips of the studio: python docs/film.py FOLDER   (`make film` takes the pictures first)

FOLDER holds KIND-N-STEP.png, a picture per step as `LORAKIT_SHOTS` of tests/notebook/test_studio_browser.py keeps them.
Each KIND becomes docs/studio-KIND.webp.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

DOCS = Path(__file__).parent
GAP, TITLE = 12, 26  # pixels between pictures, and above each
ROWS = {
    "page-light-1280": (2, 620, 470),
    "lab-dark-390": (4, 300, 700),
}  # kind: columns, width, height
PAPER = {"page-light-1280": ("#e8eaed", "#202124"), "lab-dark-390": ("#2b2b2b", "#f1f3f4")}


def strip(kind: str, pictures: list[Path]) -> Image.Image:
    """The pictures in rows, each cut to one height, with the number and name of its step."""
    columns, width, height = ROWS[kind]
    paper, ink = PAPER[kind]
    rows = -(-len(pictures) // columns)
    size = (columns * (width + GAP) + GAP, rows * (height + TITLE + GAP) + GAP)
    out = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(out)
    for place, path in enumerate(pictures):
        x = GAP + place % columns * (width + GAP)
        y = GAP + place // columns * (height + TITLE + GAP)
        number, name = path.stem.removeprefix(f"{kind}-").split("-", 1)
        draw.text((x, y + 4), f"{number}  {name}", fill=ink, font_size=15)
        one = Image.open(path).convert("RGB")
        one = one.resize((width, round(one.height * width / one.width)), Image.Resampling.LANCZOS)
        high = min(height, one.height)
        top = one.height - high if path is pictures[-1] else 0  # the download stands at the end
        out.paste(one.crop((0, top, width, top + high)), (x, y + TITLE))
    return out


def main(folder: str) -> None:
    for kind in ROWS:
        pictures = sorted(Path(folder).glob(f"{kind}-[0-9]-*.png"))
        if not pictures:
            sys.exit(f"{folder}: no pictures of {kind}; make film takes them")
        strip(kind, pictures).save(DOCS / f"studio-{kind}.webp", quality=70, method=6)


if __name__ == "__main__":
    main(sys.argv[1])

"""Where the installed package lies."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # lorakit/
ROOT = PACKAGE.parent  # a clone, or site-packages
ASSETS = PACKAGE / "assets"

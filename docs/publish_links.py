"""Writes the repository's address into notebooks and README: python docs/publish_links.py   (`make publish-links`)

Into every notebook the default of `LORAKIT_SOURCE`, so that it installs lorakit wherever it is opened alone, and, for a
repository on GitHub, the buttons "Open in Colab" and "Open in Kaggle". Without a remote all of it is taken out again:
nothing is shown that leads nowhere. Run it once after pushing to a new address, and after each new tag.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
MARKER = re.compile(r"<!-- badges -->.*?<!-- /badges -->", re.S)
SOURCE = re.compile(r'^LORAKIT_SOURCE = "[^"\n]*"', re.M)
LINK = re.compile(
    r"\]\((?:https://github\.com/[^/)]+/[^/)]+/blob/[^/)]+/(?P<folder>notebooks|docs)/|\.\./(?P<up>docs)/|)"
    r"(?P<file>[\w./-]+\.(?:ipynb|md))\)"
)
COLAB = "https://colab.research.google.com"
KAGGLE = "https://kaggle.com"


def web(remote: str) -> str:
    """https://HOST/OWNER/REPO of git@HOST:OWNER/REPO.git, ssh:// or https://; else the address as it is."""
    found = re.fullmatch(r"(?:ssh://)?(?:[\w.-]+@)([\w.-]+)[:/](.+?)(?:\.git)?/?", remote)
    if found:
        return f"https://{found[1]}/{found[2]}"
    found = re.fullmatch(r"(https?://)(?:[^@/]+@)?(.+?)(?:\.git)?/?", remote)
    return found[1] + found[2] if found else remote


def source(remote: str, ref: str) -> str:
    """What pip installs: git+https://HOST/OWNER/REPO@REF; "" without a remote."""
    if not remote:
        return ""
    address = web(remote)
    if not re.match(r"\w+://", address):  # a folder on this machine
        address = Path(address).resolve().as_uri()
    return f"git+{address}@{ref}"


def badges(remote: str, ref: str, notebook: str) -> str:
    """The two buttons, for a repository on GitHub; else nothing."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", web(remote)) if remote else None
    if not found:
        return ""
    path = f"{found[1]}/blob/{quote(ref, safe='/')}/notebooks/{notebook}.ipynb"
    return (
        f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{path}) "
        f"[![Open in Kaggle]({KAGGLE}/static/images/open-in-kaggle.svg)]"
        f"({KAGGLE}/kernels/welcome?src=https://github.com/{path})"
    )


def marked(text: str, content: str) -> str:
    """The text with `content` between its markers."""
    return MARKER.sub(lambda _: f"<!-- badges -->{content}<!-- /badges -->", text)


def linked(text: str, root: Path, remote: str, ref: str) -> str:
    """The text with links to this repository's notebooks and docs absolute, or relative without a GitHub remote."""
    base = web(remote) if badges(remote, ref, "any") else ""

    def link(found: re.Match) -> str:
        folder, file = found["folder"] or found["up"] or "notebooks", found["file"]
        if not (root / folder / file).is_file():
            return found[0]
        if base:
            return f"]({base}/blob/{quote(ref, safe='/')}/{folder}/{file})"
        return f"]({file})" if folder == "notebooks" else f"](../{folder}/{file})"

    return LINK.sub(link, text)


def stamp(root: Path, remote: str, ref: str) -> list[Path]:
    """Writes the address into every notebook and the README under `root`; returns the files that changed."""
    changed = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                text = linked(text, root, remote, ref)
                text = marked(text, badges(remote, ref, path.stem))
            elif "setup" in cell["metadata"].get("tags", ()):
                text = SOURCE.sub(lambda _: f'LORAKIT_SOURCE = "{source(remote, ref)}"', text)
            cell["source"] = text.splitlines(keepends=True)
        changed += written(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    readme = root / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        changed += written(readme, marked(text, badges(remote, ref, "quickstart")))
    return changed


def written(path: Path, text: str) -> list[Path]:
    if path.read_text(encoding="utf-8") == text:
        return []
    path.write_text(text, encoding="utf-8")
    return [path]


def git(root: Path, *arguments: str) -> str:
    """What git says; "" where it refuses."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the repository's address into notebooks.")
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--remote", help="else that of `git remote get-url origin`")
    parser.add_argument("--ref", help="tag or branch; else the newest tag, else main")
    options = parser.parse_args()
    remote = options.remote
    if remote is None:
        remote = git(options.root, "remote", "get-url", "origin")
    ref = options.ref or git(options.root, "describe", "--tags", "--abbrev=0") or "main"
    changed = stamp(options.root, remote, ref)
    print(f"{len(changed)} files, {source(remote, ref) or 'no remote: links taken out'}")


if __name__ == "__main__":
    main()

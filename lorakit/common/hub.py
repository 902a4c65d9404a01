"""The hub: the token it asks for, and what its refusals mean."""

from __future__ import annotations

import contextlib
import os
import socket
import textwrap
import urllib.request
from collections.abc import Iterator
from functools import cache
from urllib.parse import urlsplit

from lorakit.common.errors import LorakitError

SITE = "https://huggingface.co/"
KINDS = {
    "model": ("", "a local folder", "model"),
    "dataset": ("datasets/", "a local file or folder", "data set"),
}


def find_token() -> None:
    """Puts the token of Colab's or Kaggle's secrets into HF_TOKEN, unless one is there already."""
    if os.environ.get("HF_TOKEN"):
        return
    with contextlib.suppress(
        Exception
    ):  # not Colab, or no such secret, or access to it was not granted
        from google.colab import userdata

        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
    with contextlib.suppress(Exception):  # the same on Kaggle
        from kaggle_secrets import UserSecretsClient

        os.environ["HF_TOKEN"] = UserSecretsClient().get_secret("HF_TOKEN")


def reachable(seconds: float = 3) -> bool | None:
    """Whether the hub can be reached; None where the environment forbids to try.

    The hub's client tries six times, 23 s in all, before it says that there is no internet.
    """
    if os.environ.get("HF_HUB_OFFLINE"):
        return None
    return _answers(os.environ.get("HF_ENDPOINT") or SITE, seconds)


def kept_only(where: str) -> bool:
    """For `local_files_only` of a folder or hub id: whether nothing but what was downloaded before can be had."""
    return not os.path.exists(where) and not reachable()


@cache
def _answers(endpoint: str, seconds: float) -> bool:
    """Whether somebody listens there, asked once a process; behind a proxy only a download can tell."""
    address = urlsplit(endpoint)
    if urllib.request.getproxies().get(address.scheme):
        return True
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=seconds).close()
    except OSError:
        return False
    return True


def page(name: str, kind: str = "model") -> str:
    """Where a person looks at it."""
    return f"{SITE}{KINDS[kind][0]}{name}"


def refused(
    name: str, kind: str, error: BaseException, revision: str | None = None
) -> LorakitError:
    """What went wrong at the hub, with the cure; libraries wrap the hub's own errors in theirs."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    _, local, what = KINDS[kind]
    here = page(name, kind)
    for cause in _causes(error):
        if isinstance(cause, GatedRepoError):
            return LorakitError(
                f"{name} is gated: accept its licence at {here}, then put a token into HF_TOKEN (a "
                "Colab or Kaggle secret of that name, or the environment)"
            )
        if isinstance(cause, (RepositoryNotFoundError, HFValidationError)):
            return LorakitError(
                f"{name}: no such file or folder here, and no such {what} at the hub ({here}). A "
                "private one needs a token in HF_TOKEN"
            )
        if isinstance(cause, RevisionNotFoundError):
            return LorakitError(
                f"{name} has no revision '{revision}': name a branch, a tag or a commit of "
                f"{here}/commits/main"
            )
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            return LorakitError(
                f"{name}: the hub refuses access ({reason(cause)}); look at {here} and at the token "
                "in HF_TOKEN"
            )
        if status:
            return LorakitError(
                f"{name}: the hub answers {status} ({reason(cause)}); start again later"
            )
    return LorakitError(
        f"{name}: the hub cannot be reached ({reason(error)}). Without internet name {local}, or "
        "attach it; what was downloaded before is read with HF_HUB_OFFLINE=1 in the environment"
    )


def from_hub(error: BaseException) -> bool:
    """Whether the hub's own answer is behind an error."""
    from huggingface_hub.errors import HfHubHTTPError

    return any(isinstance(cause, HfHubHTTPError) for cause in _causes(error))


def reason(error: BaseException) -> str:
    """The words of an error, on one line, not too long."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""Questions to an OpenAI-compatible endpoint."""

import json
import urllib.request


def completion(address, model, question, **body):
    """The choice that the server at `address` makes, greedily."""
    asked = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
    request = urllib.request.Request(
        f"{address}/chat/completions",
        json.dumps(asked | body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        (choice,) = json.load(answer)["choices"]
    return choice

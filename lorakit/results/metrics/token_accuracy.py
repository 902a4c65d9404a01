"""Share of target tokens that are the most probable next token, given the true tokens before them."""

from lorakit.results.metrics import loss

NEEDS = ("tokens",)
HIGHER_IS_BETTER = True
rows = loss.rows


def score(rows):
    """Tokens predicted right / target tokens, 0 to 1; nan without target tokens."""
    _, tokens, right = rows.sum(axis=0)
    return float(right / tokens) if tokens else float("nan")

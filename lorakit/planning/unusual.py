"""Settings that are allowed and most likely a mistake, said before training instead of after it."""

from __future__ import annotations

from lorakit.run import Run

USUAL_RATE = {"lora": 2e-4, "full": 2e-5}
# name -> (lowest, highest) that is usual, the consequence below and above.
USUAL = {
    "rank": (2, 256, "the adapter can hardly learn", "the adapter is large and overfits"),
    "dropout": (0, 0.5, "", "most of the input is erased at every update"),
    "warmup_ratio": (0, 0.5, "", "most of the run is spent below the learning rate"),
    "weight_decay": (0, 0.5, "", "the weights are pulled to zero"),
    "epochs": (1, 50, "", "the model will most likely repeat its training rows"),
    "max_length": (32, 131_072, "most rows will be cut", "rows this long need much memory"),
    "global_batch_size": (1, 1024, "", "there are few updates"),
    "max_new_tokens": (2, 8192, "answers are cut after a word", "answers take long"),
}


def times(factor: float) -> str:
    """`1,000 times`"""
    return f"{factor:,.0f} times" if factor >= 2 else f"{factor:.1f} times"


def unusual(run: Run, rows: int | None = None) -> list[str]:
    """A sentence per setting that looks like a mistake, with a value to try.

    Args:
        run: the settings as given or as resolved.
        rows: training rows, where they are known.
    """
    usual, out = USUAL_RATE[run.method], list[str]()
    rate = usual if isinstance(run.learning_rate, str) else run.learning_rate
    if rate > 50 * usual:
        out.append(
            f"learning_rate={rate:g} is {times(rate / usual)} the usual {usual:g} of {run.method}: the loss will most "
            f"likely become nan; try learning_rate={usual:g}"
        )
    elif rate < usual / 200:
        out.append(
            f"learning_rate={rate:g} is {times(usual / rate)} below the usual {usual:g} of {run.method}: the model "
            f"will hardly change; try learning_rate={usual:g}"
        )
    for name, (low, high, below, above) in USUAL.items():
        value = getattr(run, name)
        if not low <= value <= high:
            near, what = (low, below) if value < low else (high, above)
            out.append(
                f"{name}={value:g} is unusual: {what}; usual is {low:g} to {high:g}, try {near:g}"
            )
    if run.method == "lora" and not run.use_rslora and run.alpha > 16 * run.rank:
        out.append(
            f"alpha={run.alpha:g} is {times(run.alpha / run.rank)} the rank: updates are scaled by that; try "
            f"alpha={2 * run.rank}"
        )
    if run.test_fraction == 0 and not run.test_data and not run.folds:
        out.append(
            "test_fraction=0: no row is kept for the test, so nobody will know whether it got better; try "
            "test_fraction=0.1"
        )
    if rows is not None:
        out += _for_rows(run, rows)
    return out


def _for_rows(run: Run, rows: int) -> list[str]:
    updates = run.max_updates or run.epochs * -(-rows // run.global_batch_size)
    out = []
    if run.global_batch_size > rows:
        out.append(
            f"global_batch_size={run.global_batch_size} is more than the {rows} training rows: an epoch is one "
            f"update; try global_batch_size={max(1, min(8, rows // 10))}"
        )
    if updates < 10:
        out.append(
            f"{updates} updates in all are too few to learn from; raise epochs or lower global_batch_size"
        )
    passes = updates * run.global_batch_size / max(rows, 1)
    if run.max_updates and passes > 50:
        out.append(
            f"max_updates={run.max_updates} passes over the {rows} training rows {passes:.0f} times: the model will "
            "most likely repeat them"
        )
    return out

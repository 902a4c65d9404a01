"""Lines as a run writes them, sent to a tracker."""

from lorakit.training.trackers import Trackers

LINES = [
    {"update": 1, "loss": 3.0, "target_tokens": 5, "skipped": 0},
    {"update": 2, "loss": 2.0, "target_tokens": 5},
    {"update": 2, "validation_loss": 2.5},
]


def written(name, folder):
    tracker = Trackers([name], "first", {"rank": 4, "metrics": ["cer"]}, folder)
    for line in LINES:
        tracker.log(line)
    tracker.close()

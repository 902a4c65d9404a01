"""What is said when a trained run is planned for more updates."""

from lorakit.run import Run
from lorakit.training.extension import extension
from lorakit.training.session import schedule


def extended(kind, trained, planned, updates):
    run = Run(data="x", learning_rate=1e-3, schedule=kind, warmup_ratio=0.0)
    return extension(kind, trained, planned, updates, lambda n: schedule(run, n))


def test_a_new_run_and_one_that_goes_on_as_planned_say_nothing():
    assert extended("cosine", 0, None, 12) is None
    assert extended("cosine", 3, 6, 6) is None


def test_a_decaying_schedule_says_by_how_much_the_rate_leaps():
    value, reason = extended("cosine", 6, 6, 12)
    assert value == 12
    assert reason.startswith(
        "was 6 when the first 6 were trained; the cosine schedule is stretched over all 12 updates"
    )
    assert "was 6.7e-05 in update 6 and is 0.0005 in the next one" in reason


def test_a_constant_rate_goes_on():
    assert extended("constant", 6, 6, 12).reason.endswith(
        "the learning rate is constant, so the curve goes on"
    )

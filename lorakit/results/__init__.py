"""What came of a run: predictions, metrics, intervals, report, comparison, answers.

A new metric is one file in `metrics/`, a new log reader one in `logs/`.
"""

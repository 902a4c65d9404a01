"""A run from its settings to its proof: the loop, checkpoints, resuming, launching, search and folds.

A new tracker is one file in `trackers/`.
"""

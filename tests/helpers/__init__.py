"""Builders of models, rows and runs, oracles and child processes that several tests share."""

"""One file per export target.

To add one, write a module with `TYPES`, `export` and `load`; `round_trip.py` says what they take and return.
"""

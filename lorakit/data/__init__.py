"""From a user's file to training, validation and test examples: formats, schemas, quality checks, duplicates, splits.

A new file format is one file in `formats/`, a new meaning of columns one in `schemas/`, a new check one in `quality/`.
"""

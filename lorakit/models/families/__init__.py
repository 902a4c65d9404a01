"""One file per model family, with its sizes and how to shrink it for a rehearsal.

To add one, write a module with `SPEC`, a `lorakit.models.spec.Spec`.
"""

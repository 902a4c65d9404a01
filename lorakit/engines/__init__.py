"""What computes: one engine per file or package.

To add one, write a module with `fits`, `suits` and `load`; `protocol.py` says what they take and return.
"""

HELPERS = ("protocol", "quantization")

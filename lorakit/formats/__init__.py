"""Files a user may have, one module each.

Contract: `SUFFIXES`, the endings it reads; `read(path)` yields `Example` for a row that could be read and
`Rejected` for one that could not, in the order of the file. A file unusable as a whole raises `LorakitError`.
"""

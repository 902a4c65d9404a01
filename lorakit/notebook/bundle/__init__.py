"""A folder that trains without internet: wheels, base model, data and a notebook.

`pack.py` writes it, `installer.py` is copied into it.
"""

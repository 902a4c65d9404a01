"""The folder of a run and the files in it.

Only this package knows their names.
"""

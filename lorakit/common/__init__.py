"""Errors, the registry of extensions, atomic file writes, the cache and access to the model hub.

Nothing here knows what a run is. A helper that two packages need belongs here.
"""

"""The fast parts, each beside its plain form and tested against it."""

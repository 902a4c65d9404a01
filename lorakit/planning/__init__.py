"""What a run will do, before it starts: choices with reasons, memory, time, checks of the data and of the machine.

A new automatic choice belongs into `choose.py` and returns its reason.
"""

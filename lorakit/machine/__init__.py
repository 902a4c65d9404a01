"""What this machine is: platform, GPUs, memory, and the processes of a distributed run.

Decisions that follow from these facts belong to `planning/`.
"""

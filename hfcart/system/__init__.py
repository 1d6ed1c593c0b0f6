"""This machine: device, threads, memory, waiting, the work folder and its journal, checkpoints, where the cards are.

Nothing here knows what the work is: who uses it names its records and folders.
"""

"""The index that is refreshed while training runs: run directory, snapshots, builders, modes, swap, inspection.

Nothing is imported here: the index builder is a process of its own that starts many times in a run, and it must not
pay for the parts of this package that it does not use.
"""

"""Training: the run directory, the index that is refreshed while training runs, and the training loops.

Nothing is imported here: the index builder is a process of its own that starts many times in a run, and it must not
pay for the parts of this package that it does not use.
"""

"""The index that is refreshed while training runs: when, by whom it is built, and how all ranks begin to search it.

Nothing is imported here: the index builder is a process of its own that starts many times in a run, and it must not
pay for the parts of this package that it does not use.
"""

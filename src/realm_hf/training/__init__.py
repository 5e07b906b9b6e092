"""Training: arguments, data order, retrieval ahead, optimization, checkpoints, log, and the two trainers.

Nothing is imported here: who reads a log or an argument should not pay for the trainers.
"""

"""Files and directories that a reader sees whole or not at all, and errors of the file system in words.

What corpus, index and run directory share. Nothing is imported here.
"""

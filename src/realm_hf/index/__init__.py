"""Indexes: the protocol behind which all of them stand ([`base`]), FAISS, and exact search.

`faiss` is imported by this package only. Importing it changes no setting of FAISS; the first search or build does
([`faiss_search`]).
"""

"""The retriever: queries in, passages out; where it comes from, and how its knowledge is edited."""

"""The Hugging Face Hub: what is published, how it is read, and how far a stranger is believed.

Publishing, from the command to the bytes:

    publish             a model with its retriever and cards: passages first, then the model that names their commit
    retriever           a retriever alone (`push_to_hub`), and the check of a loaded one against a model
    publishable         what a retriever must offer to be published
    belonging           do model, tokenizer, passages and index belong together?
    export              a retriever as files, written one after the other
    cards               the model's card and the passages'
    commit              the files of one commit, uploaded as they come

Both ways:

    manifest            `realm_retriever.json`: what a publication consists of

Loading, where nothing is believed that was not checked:

    load                follow a model's pin, check what belongs together, open what was asked for
    hub_files           files by name from a directory or from one commit
    own_copies          a publication's files where only this user changes them
    published_passages  passages and embeddings, memory-mapped
    published_index     the index, tried in a child process and memory-mapped
    parquet_rows        the rows of a Parquet file in pieces of bounded size
    parquet_pages       what a Parquet file would become, found without decoding it
    published_tower     the passage tower and the query tower
    published_tokenizer the tokenizer
    tokenizer_bounds    what a stranger's tokenizer may say
    ownership           did this user save a directory, or was it downloaded?

What any of them asks of a stranger's names, sizes and files is in [`realm_hf.untrusted`].
"""

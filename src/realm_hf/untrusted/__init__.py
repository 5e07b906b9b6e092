"""Files that may be anyone's: what they may cost, and one error for all that they make a library do.

checks      names and sizes that a stranger gives, room on the disk, and `HubArtefactError`
limited     a script in a child process with little memory and time
refusing    whatever a library raises over a file becomes a `HubArtefactError`
"""

"""Files that may be anyone's: what they may cost, and one error for all that they make a library do.

Names, sizes and room on the disk are compared by [`realm_hf.untrusted.checks`], a script runs on a stranger's file in
a child process with little memory and time by [`realm_hf.untrusted.limited`], and whatever a library raises over one
becomes a `HubArtefactError` by [`realm_hf.untrusted.refusing`].
"""

"""Files that may be anyone's: what they may cost, and one error for all that they make a library do."""

"""The rows of the table, a module a group; each has `measure(settings) -> Iterator[Row]`."""

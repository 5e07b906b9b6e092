"""What the benchmarks share: the table, timing in turn, the peer's environment, inputs, the machine."""

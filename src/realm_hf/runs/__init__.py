"""Run directories: who writes to them, what lies in them, and how they are read afterwards."""

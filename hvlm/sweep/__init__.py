"""Sweeps: every job in a process of its own, and one table of all."""

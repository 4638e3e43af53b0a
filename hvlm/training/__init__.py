"""Stages in order, in folders that remember; what a run shows and writes down."""

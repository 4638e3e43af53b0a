"""Command line -> checked plain configuration: composed by Hydra, checked against annotations."""

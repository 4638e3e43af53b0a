"""What ``hvlm <command>`` runs: a file for each command, with a function ``main(argv)``."""

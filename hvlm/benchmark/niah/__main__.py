"""See ``hvlm.benchmark.niah``."""

from hvlm.benchmark.niah.command import main

main()

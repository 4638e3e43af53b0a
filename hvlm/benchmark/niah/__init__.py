"""``python -m hvlm.benchmark.niah haystack=DIR out=DIR``: a benchmark of the VNBench kind over any folder of videos.

A program and no room: ``benchmark=vnbench`` is the room that asks about what it makes.
"""

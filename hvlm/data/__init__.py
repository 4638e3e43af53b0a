"""Shards -> samples -> batches: reading, decoding, sampling, order, quarantine."""

"""Anybody's videos and texts → checked shards: ``hvlm prepare SRC out=DIR``. docs/prepare.md says what is taken."""

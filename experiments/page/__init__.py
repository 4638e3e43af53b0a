"""The page of ``hvlm ui`` in a real browser: its first token's time, and a picture of it."""

"""Vision encoders: frames to patch features, and the deep query over their cached keys and values."""

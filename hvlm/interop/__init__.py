"""fVLM's own interface and weights, and Hugging Face folders."""

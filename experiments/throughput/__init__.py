"""How fast hvlm trains beside a plain loop of transformers and PyTorch."""

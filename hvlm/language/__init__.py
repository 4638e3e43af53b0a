"""Language models: Hugging Face causal LMs and the chat templates that feed them."""

"""What stands between text and ids beside the chat itself."""

"""Between text and ids: the chat and its templates, a vocabulary made from the data, words outside a vocabulary."""

"""Evidence: one folder a question, with the command that answers it and the results.json that the command writes."""

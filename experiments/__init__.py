"""Evidence: one folder a question, each with the command that answers it and the results.json that the command writes."""

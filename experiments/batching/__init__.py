"""What batches cost: logits in parts, batches by frames and tokens, texts packed in rows."""

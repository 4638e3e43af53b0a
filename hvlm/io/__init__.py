"""Files that a kill cannot damage, checkpoints, and where pretrained weights come from."""

"""From any images to batches of augmented crops."""

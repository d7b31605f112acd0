"""Pictures of training and of what a network sees."""

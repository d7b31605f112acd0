"""What pretraining optimizes: the losses, and which parts of which views they compare."""

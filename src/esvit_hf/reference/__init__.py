"""The authors' checkpoints: rules and conversion both ways."""

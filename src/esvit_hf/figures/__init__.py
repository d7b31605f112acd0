"""Every plot, in one look."""

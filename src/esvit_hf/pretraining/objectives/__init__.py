"""What student and teacher are compared by: one file an objective."""

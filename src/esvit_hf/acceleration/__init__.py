"""Faster ways to compute what networks compute, outside the networks."""

"""Folders for the Hub: cards, heads, checks and publishing."""

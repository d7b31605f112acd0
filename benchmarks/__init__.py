"""Ours against the plain formulas and the other libraries, side by side in one run: `make
bench`.
"""

"""A page to play with a model: the regions that resemble the one under the pointer, on the
photographs themselves.
"""

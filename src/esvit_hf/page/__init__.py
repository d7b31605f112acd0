"""A page to play with a model: matches, attention, similar regions and nearest images of a clicked
point.
"""

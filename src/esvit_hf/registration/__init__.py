"""The networks in transformers' Auto classes, as soon as there are any."""

"""Classifiers on frozen features, as functions of tensors."""

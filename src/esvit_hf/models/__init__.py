"""Networks of EsViT as transformers models. The folder is flat: its files travel with a model
repository.
"""

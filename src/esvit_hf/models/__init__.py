"""Networks of EsViT as transformers models. The folder is flat: its files travel with a model
repository.
"""

# Before any file of this folder is executed: registration, which follows the import of
# transformers, needs all of them whole.
import transformers  # noqa: F401

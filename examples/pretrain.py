"""Pretrain a backbone with EsViT: `accelerate launch examples/pretrain.py RECIPE
[--section.field VALUE ...]`.
"""

import sys

from esvit_hf.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))

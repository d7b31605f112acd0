"""Self-distillation with the objectives of EsViT: recipe, step and loop."""

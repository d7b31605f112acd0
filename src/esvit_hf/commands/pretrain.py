"""`esvit pretrain` and `esvit recipes`."""

from collections.abc import Sequence

from esvit_hf.commands.command_line import without_bars_of_networks
from esvit_hf.pretraining.shipped_recipes import RECIPES, list_recipes

__all__ = ["pretrain_from_words", "print_recipes"]


def pretrain_from_words(words: Sequence[str]) -> int:
    """Run a recipe and say how it ended; or print its help, or the recipe with all its fields.

    Args:
        words: the command line behind `esvit pretrain`.

    Returns:
        Exit code: 0, or 128 + signal after a stop.
    """
    if "--help" in words or "-h" in words:
        from esvit_hf.pretraining.recipe_help import recipe_help

        print(recipe_help())
        return 0
    from esvit_hf.pretraining.recipe_reading import read_words

    values = read_words([word for word in words if word != "--print_recipe"])
    if "--print_recipe" in words:
        from esvit_hf.pretraining.recipe import recipe_yaml
        from esvit_hf.pretraining.starting import settle_values

        print(recipe_yaml(settle_values(values)), end="")
        return 0
    from esvit_hf.pretraining.loop import pretrain

    with without_bars_of_networks():
        result = pretrain(values)
    if result.interrupted:
        print(
            f"stopped at step {result.steps}; continue with the same command and --run.resume true"
        )
        return 128 + result.signal
    print(f"done: {result.output_dir} holds the teacher, load it with AutoModel.from_pretrained")
    return 0


def print_recipes() -> None:
    """List the shipped recipes that `esvit pretrain` knows by name."""
    recipes = list_recipes()
    width = max(map(len, recipes))
    for name, purpose in recipes.items():
        print(f"{name.ljust(width)}  {purpose}")
    print(f"\nTheir files are in {RECIPES}.")

"""`esvit pretrain`: a recipe, and what a user is told at the end."""

from collections.abc import Sequence

__all__ = ["pretrain_from_words"]


def pretrain_from_words(words: Sequence[str]) -> int:
    """Run a recipe and say how it ended.

    Args:
        words: the command line behind `esvit pretrain`.

    Returns:
        Exit code: 0, or 128 + signal after a stop.
    """
    from esvit_hf.pretraining import parse_arguments, pretrain

    result = pretrain(parse_arguments(words))
    if result.interrupted:
        print(f"stopped at step {result.steps}; continue with the same command and --resume true")
        return 128 + result.signal
    print(f"done: {result.output_dir} holds the teacher, load it with AutoModel.from_pretrained")
    return 0

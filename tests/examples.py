"""How many examples a law is tried with: all of them, or the share that `make check` has the time for (profile `fast`)."""

from hypothesis import settings

WHOLE = 100
"""Of hypothesis's own: so many where nothing else is said."""

FAST = 20

settings.register_profile("whole", max_examples=WHOLE)
settings.register_profile("fast", max_examples=FAST)


def share(examples: int) -> int:
    """That many, or under `--hypothesis-profile=fast` a fifth."""
    return max(1, examples * settings().max_examples // WHOLE)

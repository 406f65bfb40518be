"""Full size, or narrow and shallow for tests; pictures, proposals and token counts are the same in both."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much narrower and shallower than published the structures are built."""

    divisor: int = 1
    max_depth: int | None = None

    def width(self, published: int) -> int:
        """Narrow a number of channels, classes or rows of a dictionary."""
        return max(1, published // self.divisor)

    def depth(self, published: int) -> int:
        """Cut a number of layers or blocks."""
        return published if self.max_depth is None else min(published, self.max_depth)


FULL = Sizes()
REDUCED = Sizes(divisor=16, max_depth=1)

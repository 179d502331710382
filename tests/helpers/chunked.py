"""A reader that counts the chunks that are asked of it."""

from __future__ import annotations

from collections import Counter
from itertools import product

from wustore.backends.memory import MemoryReader


class Chunked(MemoryReader):
    """A reader that claims a chunk shape and notes what is asked of it."""

    def __init__(self, source, chunk):
        super().__init__(source.meta, [source.image(i) for i in range(source.meta.n_images)])
        self.chunk = chunk
        self.asked = []

    def chunks(self, layer):
        return self.chunk

    def read(self, layer, index, out=None):
        self.asked.append((layer, index))
        return super().read(layer, index, out)

    def touched(self, layer="science"):
        """How often each chunk of a layer was touched."""
        return Counter(cell for name, index in self.asked if name == layer for cell in self.cells(index))

    def cells(self, index):
        if any(part.stop <= part.start for part in index):
            return []
        spans = [range(part.start // n, (part.stop - 1) // n + 1) for part, n in zip(index, self.chunk, strict=True)]
        return product(*spans)

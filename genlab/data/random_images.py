"""Generated images, to try an experiment on images without its data."""

from __future__ import annotations

from genlab.data.random_data import RandomData


class RandomImages(RandomData):
    """Random data of a shape with three axes."""

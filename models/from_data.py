"""The mark of what a network's constructor must know of the data, such as the size of their vocabulary."""

from typing import Annotated, TypeVar

T = TypeVar("T")

FROM_DATA = "from the data"
"""Metadata of an argument that the data supply when they are known; no configuration need give it."""
FromData = Annotated[T, FROM_DATA]
"""`vocab_size: FromData[int]`: an int that comes from the data."""

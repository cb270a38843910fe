"""Ranges that several constructors share, as types; whoever makes a network from a configuration has them checked."""

from typing import Annotated

from annotated_types import Ge, Gt, Lt

Count = Annotated[int, Ge(1)]
"""A size or a number of parts."""
Dropout = Annotated[float, Ge(0), Lt(1)]
"""Probability with which a value is dropped in training."""
Positive = Annotated[float, Gt(0)]
"""A number above 0."""
NotNegative = Annotated[float, Ge(0)]
"""0 or more."""

"""How a model's own solutions are drawn."""

from typing import Annotated

from annotated_types import Ge, Gt, Le
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12


class OwnSamples(TypedDict):
    """Solutions that the model of a run draws to the training questions before it is trained; right ones are kept.

    Attributes:
        num_samples: solutions drawn to each training question.
        temperature: logits are divided by it before a token is drawn; above 0.
        top_p: tokens are drawn from the most probable ones that together reach this probability; 1 keeps all.
        seed: of the draws.
        max_new_tokens: longest solution, stop token included; one that is cut there is not kept.
        batch_size: solutions in progress at once.
        per_question: right solutions that are kept of each question, the first ones that differ; None keeps all.
        with_given: whether the given answers are trained on as well.
    """

    num_samples: Annotated[int, Ge(1)]
    temperature: Annotated[float, Gt(0)]
    top_p: Annotated[float, Gt(0), Le(1)]
    seed: int
    max_new_tokens: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    per_question: Annotated[int, Ge(1)] | None
    with_given: bool

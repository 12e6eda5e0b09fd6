"""The types of config values, with their bounds.

Every value must fit the type that computes with it: integers int32 tensors, numbers float32 tensors in which neither
they nor their squares and inverses become 0 or infinite, and times the timers of the operating system. Sizes for which
memory is allocated at once are bounded far above any use, so that a mistyped one does not exhaust the memory.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
BatchSize = Annotated[int, Field(gt=0, le=2**20)]
# The convolution before an extra level has half of its channels.
ExtraChannels = Annotated[int, Field(ge=8, le=4096, multiple_of=2)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=1e-15, le=1e15, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, le=1e15, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=1e-3, le=1e9, allow_inf_nan=False)]


def convert_to_tuples(value: Any) -> Any:
    """Converts lists to tuples, at any depth, because strict validation accepts no lists for tuples."""
    return tuple(convert_to_tuples(item) for item in value) if isinstance(value, list | tuple) else value


# Annotates a tuple, which YAML files give as a list.
FromList = BeforeValidator(convert_to_tuples)

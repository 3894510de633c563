"""What every section of a recipe is, and numbers that occur in many."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values are not coerced from strings, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def refuse_idle(self, because: str, *names: str) -> None:
        """Raises ValueError for the first of these fields that is not as by default: it has no effect `because`."""
        for name in names:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {value} has no effect {because}")

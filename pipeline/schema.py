"""The base of every parameter schema."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A section of parameters: unknown keys are errors, values keep their type, instances are read-only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

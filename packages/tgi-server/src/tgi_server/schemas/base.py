"""The bases of request bodies and answers, and the integer kinds of TGI's contract."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

U32 = Annotated[int, Field(ge=0, lt=2**32)]
U64 = Annotated[int, Field(ge=0, lt=2**64)]
I32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
F32 = Annotated[float, Field(ge=-3.5e38, le=3.5e38)]


class Body(BaseModel):
    """A JSON object.  Unknown fields are ignored; numbers are not read from strings, nor integers from floats."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class ExtensibleBody(Body):
    """A JSON object whose unknown fields are kept, because a plugin may have declared them."""

    model_config = ConfigDict(extra="allow")

    @property
    def extra(self) -> dict[str, Any]:
        """The unknown fields that were given; null means not given."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}


class Answer(BaseModel):
    """A JSON object that the server sends.  It documents: answers are written without it, and tests compare the two."""

    model_config = ConfigDict(strict=True, protected_namespaces=())

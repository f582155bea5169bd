"""Data that a Python program holds, and their place in the recipe of a run folder. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource
from qplug.core.errors import InputError

if TYPE_CHECKING:
    from qplug.core.examples import Examples


class MemoryData(DataSource):
    """Examples that a Python program gave to ``qplug.quantize``."""

    class Config(Config):
        """``data.*: {source: memory, examples: 64}``, as ``qplug.quantize`` writes it."""

        source: Literal["memory"]
        examples: int = Field(ge=0, description="number of examples; 0 where none were given")

    _examples: Examples | None = None

    @classmethod
    def of(cls, examples: Examples) -> MemoryData:
        """The source that holds ``examples``."""
        source = cls(cls.Config(source="memory", examples=len(examples)))
        source._examples = examples
        return source

    def open(self, seed: int) -> Examples:
        """The examples, whatever the seed; raises ``InputError`` if they were not given."""
        if self._examples is None:
            what = "the examples were in the memory of a Python program, and the run folder does not hold them"
            raise InputError(
                what, where="data", fix="give them again, as qplug.export_run(FOLDER, model=…, inputs=…) does"
            )
        return self._examples

    def key(self, seed: int) -> dict[str, Any]:
        """None: raises ``InputError``, so that no run on the data stands for another one."""
        raise InputError("data in memory have no key", where="data")

"""What ``lock.json`` and ``metrics.json`` of a run folder hold, as validated values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qplug.core.errors import InputError
from qplug.core.storage.hashing import content_key


class Stored(BaseModel):
    """Base of values that are read from a run folder: of the right types, and frozen; more keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Stored)


class FileRecord(Stored):
    """One file of a run folder: its size in bytes, and the SHA-256 of its content."""

    bytes: int
    sha256: str


class CodeRecord(Stored):
    """The code of a package that a run used.

    Attributes:
        distribution, version: what installed it; ``None`` for a file of the user's own.
        digest: as ``code_digest`` gives it.
        files: path within the package → SHA-256 of that file.
        loads: whether the code makes the model of the run, so that loading the run needs it.
    """

    distribution: str | None = None
    version: str | None = None
    digest: str
    files: dict[str, str] = {}
    loads: bool = True


class PluginRecord(Stored):
    """An installed plugin, by the name of its entry point; ``loaded`` is false for a broken one."""

    distribution: str
    version: str
    loaded: bool = True


class Hashes(Stored):
    """SHA-256 of the float model's weights, of every calibration image, and of the other images as a whole."""

    model: str
    evaluation_images: str
    calibration_images: list[str] = []
    training_images: str | None = None


class Machine(Stored):
    """Where the run was computed. Outputs may differ on another processor, kind of device or number of threads."""

    device: str
    device_name: str | None = None
    processor: str = ""
    instructions: str = ""
    torch_threads: int | None = None


class Lock(Stored):
    """``lock.json``: what the run depends on, and the digests of its files.

    ``numbers`` says for ``weights`` and ``activations`` what bits and granularity do not: number formats of plugins,
    scales in blocks, dynamic ranges.
    ``digest`` is the SHA-256 of the rest. It shows damage and edits by accident. It is no signature: whoever changes
    the folder on purpose can compute it again.
    """

    qplug: str
    run_key: str | None
    seed: int
    packages: dict[str, str | None] = {}
    code: dict[str, CodeRecord] = {}
    plugins: dict[str, PluginRecord] = {}
    hashes: Hashes
    machine: Machine
    numbers: dict[str, str] = {}
    files: dict[str, FileRecord]
    digest: str


class Metrics(BaseModel):
    """``metrics.json``: numbers by their names, with ``null`` for an SQNR without noise.

    Those that every comparison reads are required.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="allow")
    __pydantic_extra__: dict[str, float | None]

    score: str = "top1"
    score_title: str = "top-1"
    score_unit: str = "fraction"
    weights: float = Field(alias="bits.weights_mean")
    activations: float = Field(alias="bits.activations_mean")
    coverage: float | None = Field(alias="coverage.macs")
    calibration: int = Field(alias="images.calibration")
    evaluation: int = Field(alias="images.evaluation", ge=0)
    bits_by: str = Field("recipe", alias="bits.by")
    bops_convention: str = ""
    evaluation_labels: str = Field("", alias="images.evaluation_labels")
    warnings: list[str] = []

    @model_validator(mode="after")
    def _scores(self) -> Metrics:
        for model in ("float", "quantized"):
            if self.__pydantic_extra__.get(f"{model}.{self.score}") is None:
                raise ValueError(f"{model}.{self.score} must be a number")
        return self


def digest_of(lock: Mapping[str, Any]) -> str:
    """The digest of a lock's values without ``digest`` itself."""
    return content_key(**{key: value for key, value in lock.items() if key != "digest"})


def validated(kind: type[S], value: Any, where: Path) -> S:
    """``value`` as a ``kind``; raises ``InputError`` with the first wrong value and the number of others."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise InputError(problem_of(error), where=str(where)) from None


def problem_of(error: ValidationError) -> str:
    """The first problem in words, and how many more there are."""
    first, *more = error.errors(include_url=False, include_input=False)
    place = ".".join(map(str, first["loc"]))[:80]
    message = first["msg"].removeprefix("Value error, ")
    words = f"{place}: {message[:1].lower()}{message[1:]}" if place else message
    return words + (f" (and {len(more)} more)" if more else "")

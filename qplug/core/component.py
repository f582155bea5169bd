"""``Technique``: a validated configuration and the hooks that it implements; the base of every plugin's techniques."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict

from qplug.core.storage.hashing import file_digest
from qplug.core.types import Extra, ForeignCode


class Config(BaseModel):
    """Base of every configuration: frozen, and unknown keys are refused."""

    # Validators are built at first use: a recipe needs only a few of the configurations that plugins register.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Component:
    """Base of the classes that a recipe names. Each has a ``Config`` whose tag field is a ``Literal``.

    Subclasses set ``Config``. An instance holds the validated configuration as ``self.config``. Its methods receive
    only the values that they need; they read no environment variables, no globals and no recipe.

    Attributes:
        tag: the field of ``Config`` that names the class in a recipe: ``use`` or ``source``.
        Config: its configuration, a subclass of ``qplug.Config``.
        needs: packages that it needs beyond those of qplug. A recipe that names it while one is missing is refused at
            its line.
    """

    tag: ClassVar[str]
    Config: ClassVar[type[Config]]
    needs: ClassVar[tuple[Extra, ...]] = ()

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def foreign_code(cls, config: Any, importing: bool) -> ForeignCode | None:
        """Code that ``config`` names and that needs the user's word to run; none by default.

        ``importing`` is whether installed packages may be imported to find out.

        A component that imports what its configuration names says so, and ``load_recipe`` refuses the recipe unless
        the user allows it.
        """
        return None

    @classmethod
    def name(cls) -> str:
        """The value of the tag, as a recipe writes it."""
        return str(get_args(cls.Config.model_fields[cls.tag].annotation)[0])


class Technique(Component):
    """A step of a recipe, tagged by ``use: <plugin>.<technique>``.

    The hooks that it may implement are those of ``qplug.hooks.specs``, each a method marked with ``qplug.hookimpl``.

    Attributes:
        Config: its parameters, with a field ``use: Literal["<plugin>.<technique>"]``.
        config: the parameters of this step of the recipe, validated.
        paper: the source of the method, with the numbers of its equations.
        notes: what a reader of the results must know of what the technique did, one sentence each. The technique
            appends to the list; each sentence becomes a warning of the run.
        gradients: whether the statistics that the technique gets must hold the gradient of ``calibration.loss``.
        needs: what must be installed beyond qplug. A recipe that names the technique without that is refused at its
            line.
        allocates: the fields of ``Config`` that hold bits, one number or several, which ``qplug_allocate_bits`` may
            answer. A recipe whose backend lacks them is refused at its line, before anything is computed.
    """

    tag = "use"
    paper: ClassVar[str] = ""
    gradients: ClassVar[bool] = False
    notes: list[str]
    allocates: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.notes = []


class ModelSource(Component):
    """A source of float models, tagged by ``source``; ``load`` returns a ``models.float_model.FloatModel``."""

    tag = "source"

    def load(self) -> Any:
        """Build the model in eval mode, on the CPU, in float32; raises ``InputError`` if that fails."""
        raise TypeError(f"{type(self).__name__} does not implement load()")

    def architecture(self) -> Any:
        """Build the model as ``load`` does, with arbitrary weights, which the caller replaces by a run folder's.

        The original checkpoint need not exist. By default, this calls ``load`` with ``checkpoint_path`` and
        ``pretrained`` unset. A source whose ``load`` reads weights from elsewhere overrides it. Raises as ``load``.
        """
        without: dict[str, Any] = {"checkpoint_path": None, "pretrained": False}
        known = {name: value for name, value in without.items() if name in type(self.config).model_fields}
        return type(self)(self.config.model_copy(update=known)).load()

    def files(self) -> dict[str, str]:
        """Text files, by name, that a run folder stores so that ``architecture`` needs no others; none by default.

        They lie beside the run's own files: the name ``config.json`` is free, ``plan.json`` is taken.
        """
        return {}

    def kept_in(self, folder: Path) -> ModelSource:
        """A source whose ``architecture`` reads the stored ``files`` from ``folder``; by default ``self``."""
        return self

    def key(self) -> dict[str, Any]:
        """JSON values that change whenever ``load`` could return another model, computed without loading a model.

        By default these are the values of the configuration, with the digest of the file in place of
        ``checkpoint_path``. A source that reads other files adds their digests. Raises ``InputError`` if a file cannot
        be read.
        """
        values: dict[str, Any] = self.config.model_dump(mode="json")
        path = values.pop("checkpoint_path", None)
        return values if path is None else values | {"checkpoint": file_digest(Path(path).expanduser())}


class DataSource(Component):
    """A source of examples, tagged by ``source``; ``open`` returns a ``qplug.core.examples.Examples``."""

    tag = "source"

    def open(self, seed: int) -> Any:
        """Draw the examples by ``seed`` without decoding them; raises ``InputError`` if that fails."""
        raise TypeError(f"{type(self).__name__} does not implement open()")

    def key(self, seed: int) -> dict[str, Any]:
        """JSON values that change whenever ``open(seed)`` could return other examples or labels.

        By default this is a digest of every example. A source whose data come with a package may return the package's
        version instead.
        """
        from qplug.core.storage.hashing import images_digest

        return {"images": images_digest(self.open(seed))}

    def calibration_key(self, seed: int) -> dict[str, Any]:
        """``key`` for calibration, which reads no label: without labels, unless the source defines ``key``."""
        if type(self).key is not DataSource.key:
            return self.key(seed)
        from qplug.core.storage.hashing import images_digest

        return {"images": images_digest(self.open(seed), labels=False)}

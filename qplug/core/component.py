"""``Technique``: a validated configuration and the hooks that it implements; the base of every plugin's techniques."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict

from qplug.core.storage.hashing import file_digest
from qplug.core.types import Extra


class Config(BaseModel):
    """Base of every configuration: frozen, and unknown keys are refused."""

    # Built when first used: a recipe names a few of all the configurations that plugins bring.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Component:
    """Something that a recipe names: a class with a ``Config`` whose tag field is a ``Literal``.

    Subclasses set ``Config``; an instance holds the validated configuration as ``self.config``. It is given narrow
    objects by its callers and reads no environment, no globals and no recipe.
    """

    tag: ClassVar[str]
    Config: ClassVar[type[Config]]

    needs: ClassVar[tuple[Extra, ...]] = ()
    """What must be installed for it beyond qplug; a recipe that names it without that is refused at its line."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def name(cls) -> str:
        """The value of the tag, as a recipe writes it."""
        return str(get_args(cls.Config.model_fields[cls.tag].annotation)[0])


class Technique(Component):
    """A step of a recipe, tagged by ``use: <plugin>.<technique>``.

    ``paper`` names the source, with the equations. The hooks that it may implement are those of ``qplug.hooks.specs``.
    """

    tag = "use"
    paper: ClassVar[str] = ""

    gradients: ClassVar[bool] = False
    """Whether its statistics must hold the gradient of the recipe's ``calibration.loss``."""

    notes: list[str]
    """What a reader of the results must know of what it did, one sentence each; they become warnings of the run."""

    allocates: ClassVar[tuple[str, ...]] = ()
    """Fields of ``Config`` that hold bits, one number or several, which ``qplug_allocate_bits`` may answer.

    A recipe whose backend lacks them is refused at its line, before anything is computed.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.notes = []


class ModelSource(Component):
    """A source of float models, tagged by ``source``; ``load`` returns a ``models.float_model.FloatModel``."""

    tag = "source"

    def load(self) -> Any:
        """Build the model in eval mode, on the CPU, in float32; raises ``InputError`` where it cannot."""
        raise TypeError(f"{type(self).__name__} does not implement load()")

    def architecture(self) -> Any:
        """As ``load``, with weights of any value: a run folder's go in their place, the original ones need not exist.

        By default ``load`` without ``checkpoint_path`` and ``pretrained``, where the configuration has them. A source
        whose ``load`` reads weights from elsewhere does without them here. Raises as ``load``.
        """
        without: dict[str, Any] = {"checkpoint_path": None, "pretrained": False}
        known = {name: value for name, value in without.items() if name in type(self.config).model_fields}
        return type(self)(self.config.model_copy(update=known)).load()

    def files(self) -> dict[str, str]:
        """Text files by name that a run folder keeps, for ``architecture`` to need nothing else; none by default.

        They lie beside the run's own files, so ``config.json`` may be one, and ``plan.json`` not.
        """
        return {}

    def kept_in(self, folder: Path) -> ModelSource:
        """The source whose ``architecture`` reads what ``files`` gave from ``folder``; by default this one."""
        return self

    def key(self) -> dict[str, Any]:
        """JSON values that are others whenever ``load`` could return another model, found without loading one.

        These are the configuration's, with the content of ``checkpoint_path``, where there is one, in the place of its
        path. A source whose models depend on more, such as files of its own, adds that. Raises ``InputError`` where
        what the model depends on cannot be read.
        """
        values: dict[str, Any] = self.config.model_dump(mode="json")
        path = values.pop("checkpoint_path", None)
        return values if path is None else values | {"checkpoint": file_digest(Path(path).expanduser())}


class DataSource(Component):
    """Where images come from, tagged by ``source``; ``open`` returns a ``qplug.core.examples.Examples``."""

    tag = "source"

    def open(self, seed: int) -> Any:
        """Choose the images by ``seed`` without decoding them; raises ``InputError`` where it cannot."""
        raise TypeError(f"{type(self).__name__} does not implement open()")

    def key(self, seed: int) -> dict[str, Any]:
        """JSON values that are others whenever ``open(seed)`` could return other images or labels.

        By default the content of all of them; a source whose images come with a package may say its version instead.
        """
        from qplug.core.storage.hashing import images_digest

        return {"images": images_digest(self.open(seed))}

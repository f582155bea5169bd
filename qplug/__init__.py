"""qplug: a plugin framework for quantizing vision models.

The public names stand in ``__init__.pyi``. They are imported when first used, so that ``import qplug`` is light and a
plugin can be discovered without importing torch.
"""

import warnings

import lazy_loader

_get, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_RENAMED = {
    "Choice": "QuantizerChoice",
    "GuardError": "EquivalenceError",
    "LearnedStep": "LearnedStepSize",
    "learned_steps": "learned_step_sizes",
}
"""Old public name → its name. The old names go with version 0.2."""


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"qplug.{name} is named qplug.{new} now", DeprecationWarning, stacklevel=2)
        return _get(new)
    return _get(name)

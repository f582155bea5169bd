"""qplug: a plugin framework for quantizing vision models.

The public names stand in ``__init__.pyi``. They are imported when first used, so that ``import qplug`` is light and a
plugin can be discovered without importing torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

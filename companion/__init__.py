"""Everything that compares, measures, draws and publishes around ``fusionlib``.

The names that notebooks use stand in ``__init__.pyi``; each is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

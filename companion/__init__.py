"""Everything that compares, measures, draws and publishes around ``fusionlib``.

``__init__.pyi`` lists the names that notebooks use; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

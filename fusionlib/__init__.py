"""Fusion Is All You Need: face identity for Stable Diffusion, reproduced.

The public names stand in ``__init__.pyi``. Each is loaded when it is first used, so that
``import fusionlib`` and the command line's help stay quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"

"""capbench: reproductions of the classic image-caption papers, measured under one protocol.

`import capbench` offers the functions of `__init__.pyi`, each imported when it is first used:

>>> import capbench
>>> capbench.novelty(["a dog"], {"a cat"})
100.0
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

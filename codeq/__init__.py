"""codeq: joint pruning and quantization of neural networks with the CoDeQ dead-zone quantizer (arXiv 2512.12981)."""

import pkgutil

import lazy_loader

# `__init__.pyi` lists the public names. Each is imported when it is first used, so `import codeq` loads no torch.
__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
_packages = {module.name for module in pkgutil.iter_modules(__path__)}
__all__ = [name for name in _names if name not in _packages]

"""`ExperimentConfig`: all settings of a run, as a strict dataclass and as YAML."""

import lazy_loader

# `__init__.pyi` lists the public names. Each is imported when it is first used: reading YAML needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

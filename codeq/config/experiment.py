"""`ExperimentConfig`: all settings of a run, validated as a whole."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from codeq.common.errors import CodeqError, quote
from codeq.common.imports import recorded_name
from codeq.common.paths import look_up, path_text
from codeq.config.aliases import ALIASES, alias, expand
from codeq.config.derived import default_name, forget_derived
from codeq.config.messages import validate
from codeq.config.own_parts import (
    import_changed_parts,
    import_own_parts,
    is_of_a_run,
    naming_missing_imports,
    with_imports,
)
from codeq.config.schema import ExperimentSchema
from codeq.config.serialize import put, serialize
from codeq.config.yaml import dump_yaml, read_yaml
from codeq.schedules import constant
from codeq.sparsity import LOSSES, Loss, LossFunction, build_loss


@dataclass(frozen=True, init=False)
class ExperimentConfig(ExperimentSchema):
    """Configuration of one experiment; the defaults are the paper's quantized ResNet-20 on CIFAR-10.

    The fields are those of a YAML file (`ExperimentSchema`), with nested parts as dataclasses or as mappings. The
    aliases below set and read one value of a nested part; a value given under both names is an error, and an alias that
    is `None` counts as not given.

    Parameters
    ----------
    name : str
        Name of the run.
    lr, weight_decay : float
        Settings of the weights: ``optimizer.param_groups.base``.
    lr_dz, weight_decay_dz, lr_bit, weight_decay_bit : float
        Settings of the quantizer's parameters: ``optimizer.param_groups.dz`` and ``.bit``.
    quantizer_kwargs : dict
        ``quantizer.kwargs``. The attribute of a float model, ``quantizer=None``, is `None`.
    exclude_layers : list of str
        ``quantizer.exclude_layers``. The attribute of a float model is `None`.
    sparsity_fn : callable or str
        The only entry of ``loss_terms``: a loss, or its name in `LOSSES`. The attribute is a callable, or `None` if
        there are no entries or several.
    sparsity_schedule : callable
        Schedule of that entry; default: constant 1.
    num_workers, output_dir
        ``workers`` and ``save_dir``.
    **settings
        All other fields of `ExperimentSchema`. `quantizer` defaults to the paper's (`None`: a float model; a name
        alone: the defaults of that quantizer) and `theta_regularizer` to ``"l2"``.

    Raises
    ------
    CodeqError
        With all unknown keys, wrong types, unknown names, values out of range and contradictions in one message.

    Examples
    --------
    >>> from codeq.schedules import linear_warmup
    >>> config = ExperimentConfig("delay", sparsity_fn="group_lasso_channels", sparsity_schedule=linear_warmup(50, 50))
    >>> config.batch_size, config.lr_dz, config.exclude_layers
    (512, 0.001, ['conv1', 'bn', 'linear'])
    >>> config.override({"loss_terms.0.lambda": 0.1, "epochs": 20}).loss_terms[0].lambda_
    0.1
    >>> ExperimentConfig("x", epoch=20, lr=0.0)
    Traceback (most recent call last):
    ...
    codeq.CodeqError: ExperimentConfig has 2 problems:
      optimizer.param_groups.base.lr=0.0: must be above 0
      epoch=20: unknown key. Did you mean 'epochs'? Allowed: name, imports, ...
    """

    lr: ClassVar[float] = alias("lr")
    weight_decay: ClassVar[float] = alias("weight_decay")
    lr_dz: ClassVar[float] = alias("lr_dz")
    weight_decay_dz: ClassVar[float] = alias("weight_decay_dz")
    lr_bit: ClassVar[float] = alias("lr_bit")
    weight_decay_bit: ClassVar[float] = alias("weight_decay_bit")
    num_workers: ClassVar[int] = alias("num_workers")
    output_dir: ClassVar[str | None] = alias("output_dir")

    def __init__(self, name: str, **settings: Any) -> None:
        content, problems = expand({"name": name} | serialize(settings))
        content = import_own_parts(content)
        self._fill(validate(ExperimentSchema, content, "ExperimentConfig", {key: key for key in ALIASES}, problems))

    def _fill(self, valid: ExperimentSchema) -> None:
        for f in fields(ExperimentSchema):
            object.__setattr__(self, f.name, getattr(valid, f.name))

    @property
    def quantizer_kwargs(self) -> dict[str, Any] | None:
        """The setting ``quantizer.kwargs``; `None` for a float model."""
        return self.quantizer.kwargs if self.quantizer else None

    @property
    def exclude_layers(self) -> list[str] | None:
        """The setting ``quantizer.exclude_layers``; `None` for a float model."""
        return self.quantizer.exclude_layers if self.quantizer else None

    @property
    def sparsity_fn(self) -> LossFunction | None:
        """The sparsity loss; `None` if there is none, or several."""
        if len(self.loss_terms) != 1:
            return None
        term = self.loss_terms[0]
        function = term.own_function() or LOSSES[term.name]
        if not term.kwargs and not isinstance(function, type):
            return function
        # A loss factory may need the model, which is known at the call.
        size = 3, self.img_size, self.img_size
        return Loss(term.name, term.kwargs, lambda model, **kwargs: build_loss(term.name, kwargs, model, size)(model))

    @property
    def sparsity_schedule(self) -> Callable[[float, int], float] | None:
        """The schedule of the sparsity loss; `None` if there are several."""
        if not self.loss_terms:
            return constant()
        return self.loss_terms[0].schedule.build() if len(self.loss_terms) == 1 else None

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], source: str = "configuration", *, trusted: bool = True
    ) -> ExperimentConfig:
        """Create a configuration from the content of a YAML file.

        Differences to the constructor: without `quantizer` the model is float, `theta_regularizer` defaults to
        ``decoupled``, a missing `name` is derived from the settings, and there are no aliases.

        Parameters
        ----------
        content : mapping
            Keys and values as in YAML.
        source : str
            Origin of the content, for error messages.
        trusted : bool
            Whether what it lists as ``imports`` is imported first, as by the constructor. The settings of a run may
            come from a stranger.

        Raises
        ------
        CodeqError
            As in the constructor.

        Examples
        --------
        >>> ExperimentConfig.from_dict({"model": "mlp", "epochs": 100}).name
        'mlp_baseline_e100_lr0.001'
        """
        if not isinstance(content, Mapping):
            raise CodeqError(f"{source} is {quote(content)}: must be a mapping")
        serialized = serialize(content)
        return cls._from_serialized(import_own_parts(serialized) if trusted else serialized, source)

    @classmethod
    def _from_serialized(cls, content: dict[str, Any], source: str, problems: Sequence[str] = ()) -> ExperimentConfig:
        config = cls.__new__(cls)
        config._fill(validate(ExperimentSchema, {"name": "unnamed"} | content, source, ALIASES, problems))
        if "name" not in content:
            object.__setattr__(config, "name", default_name(config.to_dict()))
        return config

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], *, trusted: bool = True) -> ExperimentConfig:
        """Read a YAML file; a relative `path` is searched in the working directory, then in the project.

        What the file lists as ``imports`` is imported first, unless it is the ``config.yaml`` of a run, which may come
        from a stranger. Its parts must have been imported before (``codeq.import_parts``, ``--import``); missing ones
        are named. Its ``run_dir`` is dropped: with the same settings the run is repeated in a new folder.

        Parameters
        ----------
        path : path
            The file.
        trusted : bool
            Whether it may import anything at all.

        Raises
        ------
        CodeqError
            For a file that is missing or not valid YAML, and as in the constructor.
        """
        found = look_up(path)
        content = read_yaml(found)
        if "base" in content or "notebook" in content:
            raise CodeqError(
                f"{path} is a study, not a configuration (it has a base or a notebook): "
                f"`codeq sweep {shlex.quote(str(path))}` runs its members"
            )
        of_a_run = is_of_a_run(found)
        if trusted and of_a_run:
            content.pop("run_dir", None)
        if not trusted or of_a_run:
            with naming_missing_imports(content):
                return cls.from_dict(content, source=str(path), trusted=False)
        return cls.from_dict(content, source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as built-in types; `from_dict` creates an equal configuration from them."""
        return serialize(self, functions=False)

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Write all settings to a YAML file, UTF-8; `from_yaml` creates an equal configuration from it."""
        Path(path_text(path)).write_text(dump_yaml(self.to_dict()), encoding="utf-8")

    def override(self, changes: Mapping[str, Any]) -> ExperimentConfig:
        """Return a copy with new values at dotted keys; derived defaults follow the new values.

        Parameters
        ----------
        changes : mapping
            Keys as in ``{"quantizer.kwargs.max_bits": 4, "loss_terms.0.lambda": 0.1}``, in any order: one inside of
            another applies to the value of the other. ``imports`` are made, and replace those recorded so far; the
            module of a ``model`` joins them.

        Raises
        ------
        CodeqError
            For an unknown key, and as in the constructor.
        """
        content, problems = forget_derived(serialize(self)), []
        changes = {**changes, **import_changed_parts(changes, self.imports)}
        for key, value in sorted(changes.items(), key=lambda change: change[0].count(".")):
            try:
                put(content, key, serialize(value), replace=True)
            except CodeqError as error:
                problems.append(f"{key}={quote(value)}: {error}")
        return self._from_serialized(content, "override", problems)

    def recording_imports(self, sources: Iterable[str]) -> ExperimentConfig:
        """Return a copy that also lists `sources`, which were imported at the user's request.

        Opening a run needs them. Nothing is imported here: what a run lists may come from a stranger.
        """
        made = [*map(recorded_name, sources)]
        listed = with_imports([*made, *self.imports], made)  # in the order in which they were made
        if listed == self.imports:
            return self
        return self._from_serialized(serialize(self) | {"imports": listed}, "configuration")


# Without it, help() and completion would show `**settings` alone.
_defaults = {p.name: p.default for p in inspect.signature(ExperimentSchema).parameters.values()}
_defaults |= {"quantizer": "deadzone", "theta_regularizer": "l2"} | dict.fromkeys(ALIASES)
ExperimentConfig.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        if name != "name"
        else inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name, default in _defaults.items()
    ]
)

"""The last linear layer of a classifier: its input, and the model interface that CORDS expects."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.engine.precision import full_precision
from robustcords.errors import UserError
from robustcords.models.base import name_of

# How far logits may be from h W^T + b, as a share of |h| |W|^T + |b|: rounding of the inputs, in float32 that of TF32.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3}
_TOLERANCE_HALF = 2e-2


def find_head(model: nn.Module, num_classes: int | None = None) -> nn.Linear:
    """Returns the final linear layer: the last ``nn.Linear`` that the model registers.

    Args:
        model: any module.
        num_classes: if given, only layers with this many outputs count.

    Raises:
        UserError: there is none.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    heads = [layer for layer in linear if num_classes in {None, layer.out_features}]
    if heads:
        return heads[-1]
    name = name_of(model)
    if not linear:
        raise UserError(f"{name} has no nn.Linear; last-layer gradients need a model that ends in one")
    sizes = ", ".join(map(str, sorted({layer.out_features for layer in linear})))
    raise UserError(f"{name} has no nn.Linear with {num_classes} outputs (its linear layers have {sizes})")


class LastLayer:
    """The final linear layer of a classifier, and its input.

    The model is not changed: the layer's input is read with a hook that exists for one forward pass only.

    Args:
        model: images (B, C, H, W) to logits (B, C), whose last operation is a linear layer.
        num_classes: see `find_head`.

    Attributes:
        model: the classifier.
        head: the linear layer.

    Raises:
        UserError: there is no such layer.
    """

    def __init__(self, model: nn.Module, num_classes: int | None = None) -> None:
        self.model = model
        self.head = find_head(self.model, num_classes)
        self._verified = False

    @property
    def trains_bias(self) -> bool:
        """Whether the layer has a bias that is not frozen."""
        return self.head.bias is not None and self._trains("bias")

    @property
    def trains_weight(self) -> bool:
        """Whether the layer's weight, or what it is computed from, is not frozen."""
        return self._trains("weight")

    def _trains(self, name: str) -> bool:
        """Returns whether the parameter of a name is trained.

        A normalised weight is not a parameter but computed from ``parametrizations.weight.original0`` or ``weight_g``,
        and its ``requires_grad`` only shows in what mode it was computed.
        """
        keys = ((key.removeprefix("parametrizations.").split(".")[0], p) for key, p in self.head.named_parameters())
        return any(p.requires_grad for key, p in keys if key == name or key.startswith(f"{name}_"))

    def check_trained(self, bias_alone: bool) -> None:
        """Checks that the layer has gradients to select by.

        Args:
            bias_alone: whether only the bias is used, CORDS' ``linear_layer = false``.

        Raises:
            UserError: the layer has no such parameter, or it is frozen.
        """
        has_none = "has no bias" if self.head.bias is None else "has a frozen bias"
        if bias_alone and not self.trains_bias:
            raise UserError(
                f"{self._name}: its last linear layer {has_none}, of which selector.linear_layer = false takes the "
                "gradients; set it to true"
            )
        if not (self.trains_bias or self.trains_weight):
            raise UserError(f"{self._name}: its last linear layer is frozen, so there are no gradients to select by")

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the layer's input h (B, E) and the logits z (B, classes), with ``z = h W^T + b``.

        Both are float32, or float64 if the model is, also under autocast. Gradients and train or eval mode are left to
        the caller.

        Args:
            x: (B, C, H, W).

        Raises:
            UserError: the layer is not called exactly once, its input is not (B, E), or (checked at first use) the
                logits are not its output.
        """
        calls: list[tuple[Tensor, torch.dtype]] = []

        def read(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            del layer
            calls.append((args[0] if args else kwargs["input"], output.dtype))

        handle = self.head.register_forward_hook(read, with_kwargs=True)
        try:
            with _uncompiled(self.model):
                logits = self.model(x)
        finally:
            handle.remove()
        if len(calls) != 1:
            layer = next(name for name, module in self.model.named_modules() if module is self.head)
            raise UserError(
                f"{self._name} calls {layer!r}, its last nn.Linear, {len(calls)} times in one forward pass, not once; "
                "selection by gradients needs it as the model's last operation"
            )
        features, dtype = calls[0]
        if features.shape != (len(x), self.head.in_features):
            wanted, shape = (len(x), self.head.in_features), tuple(features.shape)
            raise UserError(f"{self._name}: the input of its linear layer is {shape}; one row per image is {wanted}")
        features = full_precision(features)
        self._verify(features, logits, dtype)
        return features, full_precision(logits)

    @property
    def _name(self) -> str:
        return name_of(self.model)

    def _verify(self, features: Tensor, logits: Any, dtype: torch.dtype) -> None:
        """Checks the logits' shape, and at first use that they are the linear layer's output."""
        last = f"{self._name}: selection by gradients needs nn.Linear as the model's last operation"
        shape = (len(features), self.head.out_features)
        if not isinstance(logits, Tensor) or logits.shape != shape:
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"{last}; the model's output is {given}, that layer's {shape}")
        if self._verified or len(features) == 0:
            return
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            weight, bias = (None if p is None else p.to(features.dtype) for p in (self.head.weight, self.head.bias))
            assert weight is not None
            expected = F.linear(features, weight, bias)
            scale = F.linear(features.abs(), weight.abs(), None if bias is None else bias.abs())
            error = (logits.to(features.dtype) - expected).abs()
        # Logits that are not finite are no sign of another operation: whoever uses them will notice.
        if bool((error > _TOLERANCE.get(dtype, _TOLERANCE_HALF) * scale).any()):
            raise UserError(
                f"{last}, and something follows it (log-softmax, a temperature, the mean of several heads?): return "
                'the layer\'s output itself, or set selector.name = "random"'
            )
        self._verified = True


def _uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Context in which compiled modules run uncompiled, as compiled code ignores new hooks."""
    parts = [vars(module) for module in model.modules()]
    compiled = any(part.get("_compiled_call_impl") or "_orig_mod" in part["_modules"] for part in parts)
    # Asked of torch only where needed: it imports the compiler, which takes seconds.
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


class CordsModel(nn.Module):
    """Wraps a classifier with the interface of CORDS' models. Nothing is copied.

    State dictionaries are the wrapped model's own, so its ``state_dict()`` serves as ``model_params``.

    Args:
        model: see `LastLayer`.
        num_classes: see `find_head`.

    Raises:
        UserError: the model has no such linear layer.
    """

    def __init__(self, model: nn.Module, num_classes: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.last_layer = LastLayer(model, num_classes)

    def forward(self, x: Tensor, last: bool = False, freeze: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns logits (B, classes), with ``last`` also the features (B, E).

        Args:
            x: (B, C, H, W).
            last: return ``(logits, features)``.
            freeze: compute the features without a graph; the logits still have one, that of the linear layer.
        """
        if not last and not freeze:
            logits: Tensor = self.model(x)
            return logits
        with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze):
            features, logits = self.last_layer.features_and_logits(x)
        if freeze:
            logits = full_precision(self.last_layer.head(features.to(self.last_layer.head.weight.dtype)))
        return (logits, features) if last else logits

    def get_embedding_dim(self) -> int:
        """Returns E, the number of inputs of the linear layer."""
        return self.last_layer.head.in_features

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # both overloads
        """Returns the wrapped model's state dictionary."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state dictionary of the wrapped model."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

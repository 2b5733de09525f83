"""A custom ``nn.Module``, named in a recipe as ``"package.module:Net"``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, get_type_hints

from pydantic import create_model
from torch import nn

from robustcords.errors import UserError
from robustcords.models.base import ImageSize, ModelConfig, ModelSource, reason
from robustcords.models.outputs import as_classifier

_PLAIN = (bool, int, float, str)


class CustomModel(ModelSource):
    """A custom module; `wrap` makes a subclass for each.

    Attributes:
        factory: the class or function, called with ``num_classes`` and the recipe's options.
    """

    factory: ClassVar[Callable[..., Any]]

    def network(self, channels: int, image_size: ImageSize, num_classes: int) -> nn.Module:
        """Returns the factory's module, reduced to logits.

        Raises:
            UserError: it raises, does not return a module, or its module does not map these images to logits.
        """
        name = self.config.name
        try:
            network = type(self).factory(num_classes=num_classes, **self.config.options())
        except Exception as error:
            raise UserError(f"model {name!r} cannot be built: {reason(error)}") from error
        if not isinstance(network, nn.Module):
            raise UserError(f"model {name!r} returns a {type(network).__name__}; it must return an nn.Module")
        return as_classifier(name, network, channels, image_size, num_classes)


def wrap(name: str, factory: Any) -> type[ModelSource]:
    """Returns a `ModelSource` for a class or function that takes ``num_classes`` and returns a module.

    Every other keyword parameter is an option, unless its default cannot be written in a recipe. Normalisation is added
    in front, so the module itself should not normalise.

    Args:
        name: given by the user.
        factory: the class or function.

    Raises:
        UserError: it is neither, or does not take ``num_classes``.
    """
    if not callable(factory) or (isinstance(factory, type) and not issubclass(factory, nn.Module)):
        raise UserError(f"model {name!r} is neither an nn.Module class, a ModelSource class nor a function")
    parameters = inspect.signature(factory).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "num_classes" not in parameters and not open_ended:
        raise UserError(f"model {name!r} must take num_classes; it takes ({', '.join(parameters)})")
    fields = _fields(factory, list(parameters.values()))
    config: Any = create_model("Config", __base__=ModelConfig, **fields)
    return type(name.rpartition(":")[2], (CustomModel,), {"Config": config, "factory": staticmethod(factory)})


def _fields(factory: Any, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """Returns the pydantic field, (type, default), of every parameter that a recipe can give."""
    try:
        hints = get_type_hints(factory if inspect.isfunction(factory) else factory.__init__)
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        hints = {}
    fields: dict[str, Any] = {}
    for parameter in parameters:
        keyword = parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        required = parameter.default is parameter.empty
        plain = required or parameter.default is None or isinstance(parameter.default, (*_PLAIN, list, tuple))
        # Names that pydantic's own attributes have cannot be fields.
        if parameter.name == "num_classes" or not keyword or not plain or hasattr(ModelConfig, parameter.name):
            continue
        hint = hints.get(parameter.name)
        typed = hint in _PLAIN and (required or isinstance(parameter.default, hint))
        fields[parameter.name] = (hint if typed else Any, ... if required else parameter.default)
    return fields

"""Models: image classifiers that begin with normalisation and end with a linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustcords.config import registry
from robustcords.errors import UserError, nearest

if TYPE_CHECKING:
    from robustcords.models.base import ModelSource

MODELS = {
    "preactresnet18": "robustcords.models.preact_resnet:PreActResNet",
    "resnet8": "robustcords.models.resnet:ResNet",
    "resnet10": "robustcords.models.resnet:ResNet",
    "resnet14": "robustcords.models.resnet:ResNet",
    "resnet18": "robustcords.models.resnet:ResNet",
    "resnet20": "robustcords.models.resnet:ResNet",
    "resnet32": "robustcords.models.resnet:ResNet",
    "resnet34": "robustcords.models.resnet:ResNet",
    "resnet56": "robustcords.models.resnet:ResNet",
    "wrn-28-10": "robustcords.models.wide_resnet:WideResNet",
    "wrn-34-10": "robustcords.models.wide_resnet:WideResNet",
}

PREFIXES = {
    "robustbench:": "robustcords.models.robustbench:RobustBenchModel",
    "timm:": "robustcords.models.external:TimmModel",
    "torchvision:": "robustcords.models.external:TorchvisionModel",
}
"""Name prefix -> the class for every model of another library. They win over ``"package.module:Class"``."""


def source(name: str) -> type[ModelSource]:
    """Returns the class that builds the model of a name; construct it with ``source(name)(name=name, **options)``.

    Args:
        name: a registered name; ``"torchvision:NAME"``, ``"timm:NAME"`` or ``"robustbench:NAME"``; or
            ``"package.module:Class"``, a `ModelSource`, or any ``nn.Module`` class or function that takes
            ``num_classes`` (see `robustcords.models.custom`). The last form imports, and so executes, that module.

    Raises:
        UserError: the name is unknown, or what it names cannot be imported.
    """
    from robustcords.models.base import ModelSource
    from robustcords.models.custom import wrap
    from robustcords.models.external import ExternalModel

    if name not in MODELS and ":" not in name:
        others = ", ".join(f"{prefix}NAME" for prefix in sorted(PREFIXES))
        raise UserError(f"unknown model {name!r}{nearest(name, MODELS)}, or {others}, or package.module:Class")
    target = next((target for prefix, target in PREFIXES.items() if name.startswith(prefix)), name)
    found = registry.find("model", target)
    if not (isinstance(found, type) and issubclass(found, ModelSource)):
        return wrap(name, found)
    if issubclass(found, ExternalModel):
        found.check(name)
    return found

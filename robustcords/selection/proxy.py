"""The options of a proxy: a smaller model whose gradients choose the subsets."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, SerializeAsAny, model_validator

from robustcords.config.schema import ComponentConfig, Names, Table


class ProxyConfig(Table):
    """Options of a proxy (Coleman et al. 2020, "Selection via Proxy", https://arxiv.org/abs/1906.11829).

    It is trained for some epochs before the run itself, as the run is but on all the data; or its weights are given,
    and then it is not trained.

    Attributes:
        model: the proxy, a table like ``[model]``.
        epochs: number of epochs to train the proxy before the run, with the run's method and settings, on all data. The
            weights are saved in ``proxy/`` of the run directory; the time counts as selection.
        weights: a safetensors file with the proxy's weights, such as another run's ``weights/last.safetensors``; the
            proxy is not trained.
    """

    model: Annotated[SerializeAsAny[ComponentConfig], Names("model")]
    epochs: Annotated[int, Field(ge=1)] | None = None
    weights: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if self.epochs is None and self.weights is None:
            raise ValueError("epochs, to train the proxy for, or weights, a file of them, is missing")
        return self

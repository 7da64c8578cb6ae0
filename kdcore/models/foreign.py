"""Networks of torchvision, by name, with their hidden outputs read from outside."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdcore.models.base import BaseModelConfig, ModelError, Network, refuse_texts

POOLED = "pooled"
LISTS = (nn.Sequential, nn.ModuleList)
SKIPPED = (nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
LAST_CHANNELS = "swin"
"""Networks of this name have their maps as (B, H, W, C), but for the first convolution's."""
WITHOUT: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True, "transform_input": True},
    "inception_v3": {"aux_logits": False, "init_weights": True, "transform_input": True},
}
"""Their helpers' outputs, which no loss here reads. Inputs are normalised as ImageNet's are; these two, with their
published weights, turn that into what they were trained on."""


class TorchvisionConfig(BaseModelConfig):
    """A classifier of torchvision, as it is defined there, without its published weights.

    Nothing is ever downloaded: a teacher gets its weights by `weights: {file: …}`, the `state_dict` of the same network
    saved as safetensors; a student is trained from scratch. The student's safetensors have torchvision's names.
    Views: the network's parts by their names there (`layer1`, `layer1.0`, `features.3`, …), `pooled` (what the last
    Linear layer reads), `logits`. The patches of a `vit` and the windows of a `swin` are maps here.
    """

    title: ClassVar[str] = "torchvision's classifiers"
    source: ClassVar[str] = "torchvision.models, BSD 3-clause; each network's page there names its paper"

    type: Literal["torchvision"] = "torchvision"
    name: str = Field(default="resnet18", pattern=r"^[a-z0-9_]+$", max_length=60)
    """As torchvision.models.list_models() has it: resnet18, mobilenet_v3_small, efficientnet_b0, vit_b_16, …"""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        if len(input_shape) != 3 or input_shape[0] != 3:
            raise ModelError(
                "type", f"torchvision's networks read pictures in colour (3, H, W), these are {input_shape}"
            )
        self._check_name()
        outputs = self.classes or classes
        return build_foreign(self.name, input_shape, lambda: self._network(input_shape, outputs))

    def original(self, input_shape: tuple[int, ...], classes: int) -> tuple[str, str] | None:
        outputs = self.classes or classes
        given = {"num_classes": outputs, **self._options(input_shape)}
        arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return "torchvision", f"torchvision.models.get_model({self.name!r}, weights=None, {arguments})"

    def _options(self, input_shape: tuple[int, ...]) -> dict[str, Any]:
        if self.name.startswith("vit_"):
            return {"image_size": input_shape[1]}
        if self.name.startswith("maxvit"):
            return {"input_size": tuple(input_shape[1:])}
        return WITHOUT.get(self.name, {})

    def _check_name(self) -> None:
        from torchvision import models  # slow to import, and few jobs need it

        known = models.list_models(module=models)
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, 3) or ["resnet18", "mobilenet_v3_small"]
            raise ModelError("name", f"torchvision has no classifier {self.name!r}; {', '.join(near)} are some it has")

    def _network(self, input_shape: tuple[int, ...], classes: int) -> Network:
        from torchvision import models

        if self.name.startswith("vit_") and input_shape[1] != input_shape[2]:
            raise ValueError("pictures must be square")
        options = self._options(input_shape)
        with RealNumbers() if self.name.startswith("regnet") else nullcontext():
            network = models.get_model(self.name, weights=None, num_classes=classes, **options)
        return Foreign(network, last_channels=self.name.startswith(LAST_CHANNELS))


class RealNumbers(TorchFunctionMode):
    """Makes bare numbers on the CPU, on the meta device too: the regnets work out their widths with them.

    What names a device, if only none in particular, as modules do for what they hold, stays where it was to be.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        bare = func in (torch.arange, torch.tensor) and "device" not in given
        return func(*args, **given | ({"device": "cpu"} if bare else {}))


def build_foreign(name: str, input_shape: tuple[int, ...], make: Callable[[], Network]) -> Network:
    """What `make` makes, once a sample went through it on the meta device.

    Raises:
        ModelError: the network `name` cannot read pictures of this shape.
    """
    planned = torch.get_default_device().type == "meta"
    try:
        with torch.device("meta"), torch.no_grad():
            tried = make()
            tried.eval()(torch.empty(1, *input_shape))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        size = "x".join(map(str, input_shape[1:]))
        why = str(error).partition("\n")[0] or "they are too small"
        message = f"{name} cannot read pictures of {size}: {why}; use another network, or the view resize"
        raise ModelError("name", message) from None
    return tried.train() if planned else make()


class Foreign(Network):
    """A network that knows nothing of views: hooks read them, only while it runs.

    Args:
        network: (B, C, H, W) -> (B, classes).
        last_channels: whether its maps are (B, H, W, C).
        head: what makes the logits, where it is known; else the last Linear layer does. Where it is no Linear layer,
            the logits are of no view.
    """

    def __init__(self, network: nn.Module, *, last_channels: bool, head: nn.Module | None = None) -> None:
        super().__init__()
        self._last = next((name for name, module in network.named_modules() if module is head), None)
        self._plain = head is None or isinstance(head, nn.Linear)
        self.network = network  # as FOREIGN says
        self.last_channels = last_channels
        for module in network.modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # type: ignore[assignment]  # a view must stay what it was

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits

    def _head(self) -> tuple[str, nn.Linear | nn.Conv2d]:
        """The layer that makes the logits."""
        layers = [
            (name, each) for name, each in self.network.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)
        ]
        if self._last is not None and self._plain:
            return self._last, cast(nn.Linear, self.network.get_submodule(self._last))
        linear = [(name, each) for name, each in layers if isinstance(each, nn.Linear)]
        return linear[-1] if linear else layers[-1]

    def classifier(self) -> tuple[str, nn.Module] | None:
        head = self._head()[1]
        return (POOLED, head) if self._plain and isinstance(head, nn.Linear) else None

    def output_bias(self) -> nn.Parameter | None:
        head = self._head()[1]
        return cast(nn.Parameter | None, head.bias) if self._plain and isinstance(head, nn.Linear) else None

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        found: dict[str, tuple[Tensor, int]] = {}
        pooled: list[Tensor] = []

        def read(name: str) -> Any:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                view = self._view(out, inner=not isinstance(module, nn.Conv2d))
                if view is not None:
                    found[name] = view, out._version

            return hook

        name, head = self._head()
        with ExitStack() as hooks:
            for part, module in parts(self.network, name):
                hooks.callback(module.register_forward_hook(read(part)).remove)
            hooks.callback(head.register_forward_pre_hook(lambda module, args: pooled.append(args[0])).remove)
            logits = self.network(inputs)
        views = {name: view for name, (view, version) in found.items() if view._version == version}
        if self.classifier() is not None and pooled[-1].ndim == 2:
            views[POOLED] = pooled[-1]
        return views | {"logits": logits}

    def _view(self, out: Any, *, inner: bool) -> Tensor | None:
        """(B, D) and (B, C, H, W) as they are; (B, N, D), a patch each, as a map (B, D, N, 1)."""
        if not isinstance(out, Tensor):
            return None
        if out.ndim == 3:
            return out.transpose(1, 2).unsqueeze(-1)
        if out.ndim == 4 and self.last_channels and inner:
            return out.permute(0, 3, 1, 2)
        return out if out.ndim in (2, 4) else None


def parts(network: nn.Module, head: str, before: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of a network that give its views: its children, and those of plain lists and of an encoder.

    Left out: what holds the last layer, whose outputs are the logits, means over maps, and what changes no number.
    """
    for name, module in network.named_children():
        path = before + name
        skipped = isinstance(module, SKIPPED) or type(module).__name__ == "Permute"
        if path != head and not head.startswith(f"{path}.") and not skipped:
            yield path, module
        if type(module) in LISTS or name == "encoder":
            yield from parts(module, head, f"{path}.")

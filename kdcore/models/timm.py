"""Networks of timm, by name, with their hidden outputs read from outside; timm is installed with the extra `timm`."""

import difflib
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from kdcore.models.base import BaseModelConfig, ModelError, Network, refuse_texts
from kdcore.models.foreign import Foreign, build_foreign

LAST_CHANNELS = "swin"


class TimmConfig(BaseModelConfig):
    """A classifier of timm, as it is defined there, without its published weights.

    Nothing is ever downloaded: a teacher gets its weights by `weights`, the `state_dict` of the same network; a student
    is trained from scratch. The student's safetensors have timm's names. Views: the network's parts by their names
    there, `pooled` (what the last Linear layer reads), `logits`.
    """

    title: ClassVar[str] = "timm's classifiers"
    source: ClassVar[str] = "Wightman, PyTorch Image Models, Apache 2.0; each network's file there names its paper"

    type: Literal["timm"] = "timm"
    name: str = Field(default="resnet10t", pattern=r"^[a-z0-9_]+$", max_length=80)
    """As timm.list_models() has it, without the name of published weights: resnet10t, mobilenetv4_conv_small, …"""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        if len(input_shape) != 3:
            raise ModelError("type", f"timm's networks read pictures (C, H, W), these are {input_shape}")
        timm = installed()
        if not timm.is_model(self.name):
            near = difflib.get_close_matches(self.name, timm.list_models(), 3) or ["resnet10t", "mobilenetv3_small_050"]
            raise ModelError("name", f"timm has no network {self.name!r}; {', '.join(near)} are some it has")
        outputs = self.classes or classes
        return build_foreign(self.name, input_shape, lambda: self._network(timm, input_shape, outputs))

    def original(self, input_shape: tuple[int, ...], classes: int) -> tuple[str, str] | None:
        options = _options(installed(), self.name, input_shape, self.classes or classes)
        named = ", ".join(f"{option}={value!r}" for option, value in options.items())
        return "timm", f"timm.create_model({self.name!r}, {named})"

    def _network(self, timm: Any, input_shape: tuple[int, ...], classes: int) -> Network:
        network = timm.create_model(self.name, pretrained=False, **_options(timm, self.name, input_shape, classes))
        head = network.get_classifier()
        return Foreign(
            network,
            last_channels=self.name.startswith(LAST_CHANNELS),
            head=head if isinstance(head, nn.Module) else nn.Identity(),  # a distilled one has two
        )


def _options(timm: Any, name: str, input_shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    options: dict[str, Any] = {"num_classes": classes, "in_chans": input_shape[0]}
    published = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    if published is not None and published.fixed_input_size:
        options["img_size"] = tuple(input_shape[1:])
    return options


def installed() -> Any:
    """timm, which takes a second to import and which few jobs need.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import timm
    except ImportError:
        message = "timm is not installed here; install the extra, pip install 'distillery[timm]', or use torchvision"
        raise ModelError("type", message) from None
    return timm

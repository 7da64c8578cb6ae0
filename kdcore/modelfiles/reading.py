"""Whether an uploaded model reads the samples of a job and answers for its classes, as far as its check tells: said
before anything is loaded."""

from collections.abc import Sequence

import torch

from kdcore.data import DataFacts
from kdcore.modelfiles.check import network_of
from kdcore.modelfiles.fit import differences, listed, wanted_weights, without_prefix
from kdcore.modelfiles.profile import ModelOptions, ModelProfile
from kdcore.modelfiles.tensors import Stored
from kdcore.models import ModelConfig, ModelError, Network, OnnxConfig

Shape = Sequence[int | str | None]


def reading_fault(
    profile: ModelProfile, options: ModelOptions, config: ModelConfig, facts: DataFacts, outputs: int
) -> str | None:
    """Why it cannot be this model of a job; None where nothing is known against it.

    Args:
        profile: what its check found.
        options: by which it was checked.
        config: the model that the spec says it is.
        facts: of the samples as it is to see them.
        outputs: how many it has in the job.
    """
    if profile.format == "onnx" and not isinstance(config, OnnxConfig):
        return f"it is an ONNX file, not the weights of a {config.type}; name it as `model: {{type: onnx}}`"
    if isinstance(config, OnnxConfig):
        if profile.format != "onnx":
            return "it holds weights and is no ONNX file; name their architecture in `model`"
        return _onnx_fault(profile, config, facts, outputs)
    return _weights_fault(profile, options, config, facts, outputs)


def _onnx_fault(profile: ModelProfile, config: OnnxConfig, facts: DataFacts, outputs: int) -> str | None:
    reads = tuple(facts.input_shape)
    if config.layout == "nhwc" and len(reads) == 3:
        reads = (*reads[1:], reads[0])
    if len(profile.inputs) == 1 and not _fits(profile.inputs[0].shape, reads):
        own = profile.inputs[0].shape[1:]
        return f"it reads {own}, here samples are {list(reads)}; set a `view`, such as {{type: picture}}, or `layout`"
    there = {each.name: each.shape for each in profile.outputs}
    logits = config.chosen(list(there))
    wanted = {logits or str(config.output): (outputs,), **{name: tuple(shape) for name, shape in config.hidden.items()}}
    for name, shape in wanted.items() if there else ():
        if name not in there:
            return f"it has no output {name!r}; it has {', '.join(there)[:300]}"
        if not _fits(there[name], shape):
            mend = "name its outputs in `classes`" if name == logits else "mend `hidden`"
            return f"its output {name!r} is {there[name][1:]} for each sample, here {list(shape)}; {mend}"
    return None


def _fits(known: Shape, wanted: tuple[int, ...]) -> bool:
    """Whether a shape may be this one of a sample: it has the batch, names where it is free, and is empty where nobody
    knows it."""
    if not known:
        return True
    pairs = zip(known[1:], wanted, strict=False)
    return len(known) == 1 + len(wanted) and all(not isinstance(own, int) or own == here for own, here in pairs)


def _weights_fault(
    profile: ModelProfile, options: ModelOptions, config: ModelConfig, facts: DataFacts, outputs: int
) -> str | None:
    try:
        theirs = network_of(profile.model, options).state_dict() if profile.model is not None else {}
        with torch.device("meta"), torch.no_grad():
            network = config.build(facts.input_shape, config.classes or outputs, facts.vocabulary)
    except ModelError:
        return None  # the plan says what is wrong with the model
    if profile.model is None:
        return _difference(profile, network)
    here = network.state_dict()
    for name, weight in here.items():
        if name in theirs and theirs[name].shape != weight.shape:
            own, mine = list(theirs[name].shape), list(weight.shape)
            message = f"its {name} is {own}, and {mine} for samples {list(facts.input_shape)} and {outputs} outputs"
            return f"{message}; it was checked for another shape, vocabulary or number of classes"
    return None


def _difference(profile: ModelProfile, network: Network) -> str | None:
    """Of weights that were compared with no architecture yet; where their names are not known, nothing."""
    if not profile.weights:
        return None
    found = {
        each.name: Stored(tuple(int(size or 0) for size in each.shape), getattr(torch, each.dtype), _unread)
        for each in profile.weights
    }
    wanted, _ = wanted_weights(network)
    wrong = differences(without_prefix(found, wanted)[0], wanted)
    return listed(wrong) if wrong else None


def _unread() -> torch.Tensor:
    raise AssertionError("names and shapes are compared, no numbers")

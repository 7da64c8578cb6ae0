"""How a job is computed, where its machine may choose."""

from typing import Annotated, Literal

from pydantic import Field

from kdcore.config import Config

Threads = Annotated[int, Field(ge=1, le=1024)]


class TuningConfig(Config):
    """How the job is computed, never what: `auto` is what is fastest here, and the job's `choices` say what it was; the
    other value leaves that way out. All but `batches` is of CPUs."""

    threads: Literal["auto"] | Threads = "auto"
    """`auto`: as many as some steps of the largest network are faster by."""
    products: Literal["auto", "highest"] = "auto"
    """Float32 matrix products by the faster of two libraries, where it is as exact; `highest`: torch's usual one."""
    masks: Literal["auto", "torch"] = "auto"
    """Dropout's masks cut from random words; `torch`: drawn one by one."""
    layout: Literal["auto", "channels_first"] = "auto"
    """Maps of networks in memory pixel by pixel, where the libraries can; `channels_first`: channel by channel."""
    compile: Literal["auto", "always", "never"] = "auto"
    """A small student's step as a trace of torch's calls, and in a stage so long that it pays for the compiler as one
    compiled graph, where nothing happens in it that a graph cannot hold; `always`: compiled, whatever the length and
    the student's size, if there is a compiler; `never`: neither."""
    batches: Literal["auto", "fixed"] = "auto"
    """Samples that are evaluated at once, as many as a GPU is fastest with; `fixed`: 256."""

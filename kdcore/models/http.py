"""A teacher that answers over HTTP: asked once about each sample, before anything learns from it."""

from typing import ClassVar, Literal

from pydantic import Field

from kdcore.models.precomputed import AnswersConfig


class HttpConfig(AnswersConfig):
    """A frozen teacher behind an address: `POST {"instances": [...]}` gives `{"predictions": [[...], ...]}`, as in
    KServe's V1 protocol and TensorFlow Serving.

    An instance is what the teacher's view gives of a sample, as nested lists of numbers. Each sample of every split is
    asked about once; the answers are kept by what was asked, so that neither a restart nor the next job asks again.
    Augmentation changes only what the student sees. The operator of the service allows addresses, and keeps secrets.
    """

    title: ClassVar[str] = "Teacher over HTTP"
    source: ClassVar[str] = "KServe: V1 inference protocol, kserve.github.io; TensorFlow Serving's REST API"

    type: Literal["http"] = "http"
    url: str = Field(max_length=2000, pattern=r'^https?://[!"$-?A-~]+$')
    """Where it is asked: ASCII without spaces, `@` and `#`; the setting `teacher_urls` must allow it."""
    gives: Literal["logits", "probabilities"] = "logits"
    """What a prediction is: one number for each class; of probabilities the logarithm is taken."""
    batch: int = Field(default=64, ge=1, le=4096)
    """Samples in a request."""
    requests_per_second: float = Field(default=10.0, gt=0, le=1000)
    """At most so many."""
    secret: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,60}$")
    """The name of one of the setting `teacher_secrets`, which is sent as a bearer token."""

"""Data that a user uploaded: a file that was checked, read as its profile says."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, StringConstraints
from torch import Tensor

from kdcore.data.base import (
    BaseDataConfig,
    DataError,
    DataFacts,
    Dataset,
    FieldFacts,
    NoRoomError,
    Places,
    Split,
    TaskName,
)
from kdcore.data.pictures import Fit
from kdcore.data.splits import split_counts
from kdcore.data.stored import StoredRows
from kdcore.data.tokenizer import TokenizerConfig
from kdcore.data.views import LUMA
from kdcore.uploads.cache import cached, evict, held
from kdcore.uploads.prepare import FORM, Rule, prepare
from kdcore.uploads.profile import DatasetProfile

DatasetId = Annotated[
    str, StringConstraints(pattern=r"^(ds_[0-9a-z]{26}|[A-Za-z0-9][A-Za-z0-9._-]{0,99}@[1-9][0-9]{0,8})$")
]
SPARED = 2**28
"""Bytes that a prepared form leaves on the disk."""
RESIDENT = 256 * 2**20
"""Bytes of samples that are read into memory; larger data sets stay in their file."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class UploadConfig(BaseDataConfig):
    """Data of your own, uploaded and checked: pictures, texts or numbers, with labels or without.

    Decoded once, into a cache; what is larger than 256 MiB then stays on disk, and each batch is read when it is
    needed. The training samples are ordered so that any beginning of them has its share of every class: the first are
    held out for validation, unless the data set has a validation split of its own, and the next `train_samples` are
    trained on. Pictures and numbers are normalised with the mean and deviation of the training split, as the models
    see it: every picture counts the same, whatever its size.
    """

    title: ClassVar[str] = "Your own data, uploaded"
    source: ClassVar[str] = "your own"

    type: Literal["upload"] = "upload"
    dataset: DatasetId
    """Its id, or `name@version`."""
    size: int = Field(default=64, ge=8, le=1024)
    """Of pictures in files: pixels a side that the models read."""
    fit: Fit = "crop"
    """Of pictures in files: `crop` keeps the middle, `resize` distorts the whole, `pad` keeps it within black."""
    grey: bool = False
    """Of pictures in files: one channel of brightness instead of three of colour."""
    normalise: Literal["data", "imagenet"] = "data"
    """Of pictures in colour: with whose mean and deviation; published weights want ImageNet's."""
    vocabulary: int = Field(default=10_000, ge=3, le=1_000_000)
    """Of texts: tokens, with padding and the unknown word."""
    length: int = Field(default=64, ge=1, le=8192)
    """Of texts: tokens of a sample; longer ones lose their end."""
    profile: DatasetProfile | None = None
    """What its check found; the service fills it in."""

    @property
    def task_name(self) -> TaskName:
        return self.profile.task if self.profile is not None else "classification"

    @property
    def origin(self) -> str:
        return f"{self.source}, {self.dataset}" + (f", the file {self.profile.digest}" if self.profile else "")

    @property
    def labelled(self) -> float:
        if self.profile is None:
            return 1.0
        return self.profile.labelled.train / max(1, self.profile.samples.train)

    def facts(self) -> DataFacts:
        profile = self._profile()
        train, validation = self._counts(profile)
        shape, mean, std = self._shape(profile)
        facts = DataFacts(
            input_shape=shape,
            classes=tuple(each.name for each in profile.classes),
            train=train,
            validation=validation,
            test=profile.samples.test,
            mean=mean,
            std=std,
            vocabulary=self.vocabulary if profile.kind == "text" else None,
            task=profile.task,
            bytes_each=1 if profile.kind == "picture" or profile.integers else 4,
            labelled=self.labelled,
            teacher_logits=bool(profile.logits.train),
            top_logits=profile.top_logits,
            spread=profile.spread,
            fields=tuple(
                FieldFacts(each.name, tuple(each.shape), tuple(each.mean), tuple(each.std)) for each in profile.fields
            ),
        )
        samples = train + validation + profile.samples.test
        return replace(facts, resident=(facts.input_bytes + facts.logits_bytes) * samples <= RESIDENT)

    def _profile(self) -> DatasetProfile:
        if self.profile is None:
            raise DataError("nothing is known of this data set; upload it, and wait until it is ready", "dataset")
        return self.profile

    def _counts(self, profile: DatasetProfile) -> tuple[int, int]:
        """Samples of (train, validation)."""
        if not profile.samples.validation:
            return split_counts(self, profile.samples.train)
        if self.train_samples is not None and self.train_samples > profile.samples.train:
            message = f"train_samples {self.train_samples} is more than the {profile.samples.train} there are"
            raise DataError(f"{message}; ask for at most {profile.samples.train}", "train_samples")
        return self.train_samples or profile.samples.train, profile.samples.validation

    def _shape(self, profile: DatasetProfile) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
        """Of one sample; and what it is normalised with."""
        mean, std = tuple(profile.mean), tuple(profile.std)
        if profile.kind == "text":
            return (self.length,), mean, std
        pictures = profile.kind == "picture"
        if self.normalise == "imagenet":
            if not pictures and profile.shape[:1] != [3]:
                raise DataError("imagenet is the mean and deviation of pictures in colour; leave it out", "normalise")
            mean, std = IMAGENET
        if not pictures:
            return tuple(profile.shape), mean, std
        if self.grey:
            mean, std = ((sum(w * v for w, v in zip(LUMA, each, strict=True)),) for each in (mean, std))
        return (len(mean), self.size, self.size), mean, std

    def load(self, places: Places) -> Dataset:
        facts, profile = self.facts(), self._profile()
        given = places.uploads.get(self.dataset)
        if given is None:
            raise DataError(f"the file of data set {self.dataset} was not given", "dataset")
        others = places.tokenizers
        rule = self._rule(profile, facts, others)
        if places.cache is None:
            with tempfile.TemporaryDirectory() as made:  # its files live as long as they are mapped
                self._check_room(others, shutil.disk_usage(made).free - SPARED)
                prepare(_file(given), profile, rule, Path(made), places.poll)
                return self._open(Path(made), facts, profile, None)
        cache, key = places.cache, self.prepared_key(others)

        def make(new: Path) -> None:
            self.check_cache(cache, places.cache_bytes, SPARED, others)  # nothing is taken out for what cannot fit
            lacking = self._written_bytes(others) + SPARED - shutil.disk_usage(cache).free
            evict(cache, min(places.cache_bytes - self.prepared_bytes(others), held(cache) - lacking), keep=key)
            self._check_room(others, shutil.disk_usage(cache).free - SPARED, places.cache_bytes)
            prepare(_file(given), profile, rule, new, places.poll)

        folder, lock = cached(cache, key, make, places.cache_bytes, places.poll)
        return self._open(folder, facts, profile, lock)

    def check_cache(self, cache: Path, most: int, spared: int, tokenizers: Sequence[TokenizerConfig]) -> None:
        """See that the prepared form fits into a cache, as far as the profile tells.

        Args:
            tokenizers: as `Places` has them.
            most: bytes that the cache may have.
            spared: bytes that stay free on its disk.

        Raises:
            DataError: it cannot, whatever is taken out of the cache for it; `NoRoomError` where the disk is too full.
        """
        if not (cache / self.prepared_key(tokenizers)).is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(cache).free + held(cache) - spared
            self._check_room(tokenizers, free, most)

    def _check_room(self, tokenizers: Sequence[TokenizerConfig], free: int, most: int | None = None) -> None:
        """Where what preparing writes does not fit, nothing is begun."""
        needed = self.prepared_bytes(tokenizers)
        field = {"picture": "size", "text": "length"}.get(self._profile().kind)
        mend = f"set a smaller `{field}`" if field else "upload fewer samples, or smaller ones"
        if most is not None and needed > most:
            message = f"prepared, the samples take {needed:,} bytes, and the cache may have {most:,} (cache_bytes)"
            raise DataError(f"{message}; {mend}", field or "dataset")
        if (written := self._written_bytes(tokenizers)) > free:
            message = f"preparing the samples takes {written:,} bytes, and there is room for {max(0, free):,}"
            raise NoRoomError(f"{message}; {mend}", field or "dataset")

    def prepared_bytes(self, tokenizers: Sequence[TokenizerConfig] = ()) -> int:
        """Of the prepared form, which holds all samples, whatever part of them is trained on."""
        facts, counts = self.facts(), self._profile().samples
        further = facts.bytes_each * sum(each.length for each in tokenizers)
        each = facts.input_bytes + further + facts.label_bytes + facts.logits_bytes
        return each * (counts.train + counts.validation + counts.test)

    def _written_bytes(self, tokenizers: Sequence[TokenizerConfig]) -> int:
        """Of all files that there are at once while it is prepared: the samples as they come, of texts the texts
        themselves, then the prepared form in its order, and a table that is copied out of an archive."""
        profile, needed = self._profile(), self.prepared_bytes(tokenizers)
        return needed + (profile.text_bytes or needed) + profile.copied_bytes

    def prepared_key(self, tokenizers: Sequence[TokenizerConfig] = ()) -> str:
        """The name of the prepared form: other content, options or rule, another name."""
        profile, rule = self._profile(), self._rule(self._profile(), self.facts(), tokenizers)
        parts: list[Any] = [FORM, profile.digest, profile.options.model_dump(mode="json"), rule.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _rule(self, profile: DatasetProfile, facts: DataFacts, tokenizers: Sequence[TokenizerConfig]) -> Rule:
        if profile.kind == "picture":
            return Rule(size=self.size, fit=self.fit, grey=self.grey)
        if profile.kind == "text":
            skip = 0 if profile.samples.validation else facts.validation
            return Rule(
                vocabulary=self.vocabulary,
                length=self.length,
                skip=skip,
                train=facts.train,
                tokenizers=list(tokenizers),
            )
        return Rule()

    def _open(self, folder: Path, facts: DataFacts, profile: DatasetProfile, lock: object) -> Dataset:
        form = json.loads((folder / "form.json").read_text(encoding="utf-8"))
        if self.normalise == "data" and profile.kind != "text":  # what is tested has no part in it
            facts = replace(facts, mean=tuple(form["mean"]), std=tuple(form["std"]))
        labels = torch.from_numpy(np.load(folder / "labels.npy", allow_pickle=False))
        own = bool(profile.samples.validation)
        held = facts.validation
        given, trained = (0, profile.samples.train) if own else (held, held + profile.samples.train)
        bounds = {
            "train": (given, given + facts.train),
            "validation": (trained, trained + held) if own else (0, held),
            "test": (len(labels) - facts.test, len(labels)),
        }

        def rows(name: str, start: int, stop: int) -> Tensor | StoredRows:
            stored = StoredRows(folder / name, start, stop, keep=lock)
            return stored[:] if facts.resident else stored

        splits = {
            name: Split(
                rows("inputs.npy", *bound),
                labels[slice(*bound)].clone(),
                rows("logits.npy", *bound) if profile.logits.train else None,
            )
            for name, bound in bounds.items()
        }
        parts = f"{form['digest']} {bounds}"
        digest = f"sha256:{hashlib.sha256(parts.encode()).hexdigest()}"
        scale = 255.0 if facts.bytes_each == 1 else 1.0
        train, validation, test = splits.values()
        return Dataset(facts, train, validation, test, scale, digest, form["tokenizer"])


def _file(given: Path | Callable[[], Path]) -> Path:
    return given() if callable(given) else given

"""95% intervals over documents.

Every metric is a function of sums over documents, so a resample of documents is a weighting of their sums. With more
than `MAX_GROUPS` documents, neighbours share a group and groups are resampled: the interval stays valid, and memory
bounded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_GROUPS = 1024
MOST_UNDEFINED = 0.025  # share of resamples that may lack a value: as much as an interval leaves out on one side


class Interval(NamedTuple):
    """A number with its 95% interval."""

    value: float
    low: float
    """NaN, like `high`, where the spread is unknown."""
    high: float

    def to_json(self) -> dict[str, float | None]:
        """As in the JSON line and eval.json: unknown bounds are null."""
        return {name: None if math.isnan(number) else number for name, number in self._asdict().items()}


class GroupSums:
    """Sums a group of documents, in float64, under names: `sums["se"]` is [groups] or [groups, d].

    Documents are assigned to groups in the order in which they arrive. Beyond `MAX_GROUPS`, neighbouring groups are
    merged, and from then on each group takes twice as many documents.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self._number: dict[int, int] = {}
        self._per_group = 1
        self._resampled: dict[tuple[int, int], _Weighted] = {}  # by resamples and seed, until rows are added

    @property
    def groups(self) -> int:
        """Number of groups so far."""
        return -(-len(self._number) // self._per_group)

    @property
    def documents(self) -> int:
        """Number of documents seen."""
        return len(self._number)

    def group(self, order: Tensor) -> Tensor:
        """The group of documents given by their order numbers (0 for the first that arrived)."""
        return order // self._per_group

    def see(self, document: Tensor) -> Tensor:
        """Number documents int64 [n] in the order in which they arrive. Returns their order numbers [n].

        By itself it is for rows that another process adds: then all processes have the same groups.
        """
        self._resampled = {}
        unique, inverse = torch.unique(document, return_inverse=True)
        numbers = [self._number.setdefault(index, len(self._number)) for index in unique.tolist()]
        order = torch.tensor(numbers)[inverse]
        while self.groups > MAX_GROUPS:
            self._per_group *= 2
            self.sums = {name: _merge_pairs(s) for name, s in self.sums.items()}
        return order

    def add(self, document: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Add rows: `document` int64 [n], every value [n] or [n, d]. Returns the documents' order numbers [n]."""
        order = self.see(document)
        for name, rows in values.items():
            sums = self._of_all_groups(name, rows.shape[1:])
            self.sums[name] = sums.index_add_(0, self.group(order), rows.to("cpu", torch.float64))
        return order

    def merge(self, sums: Mapping[str, Tensor]) -> None:
        """Add the `sums` of another process that saw the same documents in the same order."""
        for name, others in sums.items():
            mine = self._of_all_groups(name, others.shape[1:])
            mine[: len(others)] += others
            self.sums[name] = mine

    def _of_all_groups(self, name: str, shape: torch.Size) -> Tensor:
        """The sums of that name, with zeros for groups that had no rows, [groups, *shape]."""
        sums = self.sums.get(name)
        if sums is not None and len(sums) == self.groups:
            return sums
        longer = torch.zeros(self.groups, *shape, dtype=torch.float64)
        if sums is not None:
            longer[: len(sums)] = sums
        return longer

    def interval(
        self,
        metric: Callable[[Mapping[str, Tensor]], Tensor],
        also: Mapping[str, Tensor] | None = None,
        /,
        *,
        resamples: int,
        seed: int,
    ) -> Interval | None:
        """`metric` of the sums with its percentile interval over resampled groups; None where it is not defined.

        `metric` gets sums with a leading axis R ([R] or [R, d]) and returns [R]. The bounds are NaN for a single group,
        which has nothing to vary with, and where more than 2.5% of the resamples have no finite value. `also` are
        further sums [groups], by names that `metric` reads.
        """
        full = torch.ones(1, self.groups, dtype=torch.float64)
        value = metric(_Weighted(self.sums, full).with_sums(also)).item()
        if not np.isfinite(value):
            return None
        if self.groups < 2:
            return Interval(value, math.nan, math.nan)
        draws = self.draws(metric, also, resamples=resamples, seed=seed)
        defined = draws[torch.isfinite(draws)]
        if len(draws) - len(defined) > MOST_UNDEFINED * len(draws) or len(defined) == 0:
            return Interval(value, math.nan, math.nan)
        low, high = torch.quantile(defined, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Interval(value, low, high)

    def draws(
        self,
        metric: Callable[[Mapping[str, Tensor]], Tensor],
        also: Mapping[str, Tensor] | None = None,
        /,
        *,
        resamples: int,
        seed: int,
    ) -> Tensor:
        """`metric` of every resample of the groups, float64 [resamples]; see `interval`."""
        if (resamples, seed) not in self._resampled:
            weights = resample_weights(self.groups, resamples, seed)
            self._resampled[resamples, seed] = _Weighted(self.sums, weights)
        return metric(self._resampled[resamples, seed].with_sums(also))

    def fingerprint(self) -> str:
        """SHA-256 of the documents in their order, their grouping, and the sums "count" of their tokens."""
        digest = hashlib.sha256(json.dumps([self._per_group, *self._number]).encode())
        digest.update(self.sums["count"].numpy().tobytes())
        return digest.hexdigest()


class _Weighted(Mapping[str, Tensor]):
    """Weighted sums by name, weights [R, groups] @ sums, each computed when it is first read and then kept."""

    def __init__(self, sums: Mapping[str, Tensor], weights: Tensor) -> None:
        self._sums, self._weights = sums, weights
        self._known: dict[str, Tensor] = {}

    def with_sums(self, also: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """These sums and others."""
        return self if not also else ChainMap({name: self._weights @ s for name, s in also.items()}, self)  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            self._known[name] = self._weights @ self._sums[name]
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)


def resample_weights(groups: int, resamples: int, seed: int) -> Tensor:
    """How often each group is drawn in each resample (Efron & Tibshirani 1993, ch. 6), float64 [resamples, groups]."""
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return torch.from_numpy(draws.astype(np.float64))


def ratio(numerator: str, denominator: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The metric sum(numerator) / sum(denominator)."""
    return lambda sums: sums[numerator] / sums[denominator]


def plain(values: Any) -> Any:
    """Intervals, and mappings and sequences of them at any depth, as JSON values."""
    if isinstance(values, Interval):
        return values.to_json()
    if isinstance(values, Mapping):
        return {str(name): plain(value) for name, value in values.items()}
    return [plain(value) for value in values] if isinstance(values, list | tuple) else values


def _merge_pairs(sums: Tensor) -> Tensor:
    if sums.shape[0] % 2:
        sums = torch.cat([sums, torch.zeros_like(sums[:1])])
    return sums[0::2] + sums[1::2]

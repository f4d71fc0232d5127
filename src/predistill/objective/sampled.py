"""Random targets: a few draws from the teacher, whose weights are the teacher's probabilities on average.

N positions  C positions worked on at once  V vocabulary  R draws  K most different ids drawn at one position
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import ConfigDict, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from predistill.errors import RecipeError
from predistill.objective.targets import SparseTargets
from predistill.objective.whole import Whole, by_rows, mass

__all__ = ["Sampled"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Sampled:
    """`draws` ids with replacement from q_v = p_v^(1 / proposal_temperature), normalised (arXiv 2503.16870).

    weight_NK = (count / draws) * p / q, whose expectation is p: unbiased, for every proposal, with a variance that
    falls as 1 / draws. A flatter proposal (above 1) sees more different ids; its weights no longer sum to 1. With a
    proposal that is not the teacher itself, logprob_NK and lse_tau_N (of the proposal) are filled too.
    """

    draws: PositiveInt
    proposal_temperature: PositiveFloat = 1.0
    kind: Literal["sampled"] = "sampled"

    def __call__(
        self, logit_NV: Tensor, label_N: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> SparseTargets:
        """Targets of logits [N, V] of any float type; label_N fills label_logprob_N."""
        shape, device = (len(logit_NV), self.draws), logit_NV.device
        uniform_NR = torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
        uniform_NR = _ascending(uniform_NR)  # found faster in order, and so are their ids
        tau = None if self.proposal_temperature == 1 else self.proposal_temperature
        return by_rows(lambda whole, rows: self._draw(whole, uniform_NR[rows]), logit_NV, label_N, tau=tau)

    def narrow(self, targets: SparseTargets, *, generator: torch.Generator | None = None) -> SparseTargets:
        """`draws` of the draws already made, without replacement. RecipeError where fewer were made.

        All of them: the targets as they are. RecipeError, too, for another proposal_temperature than theirs.
        """
        if targets.ids_NK is None or targets.weight_NK is None or targets.draws is None:
            raise RecipeError("Targets that were not sampled cannot be cut to draws: capture again with --draws.")
        if self.draws > targets.draws:
            raise RecipeError(f"{self.draws} draws are asked for and {targets.draws} were made: ask for fewer.")
        if (targets.tau or 1.0) != self.proposal_temperature:
            raise RecipeError(
                f"The draws were made at temperature {targets.tau or 1:g}, not {self.proposal_temperature:g}: "
                "ask for the proposal_temperature that they were made with."
            )
        if self.draws == targets.draws:
            return targets
        correction_NK = self._correction(targets.logprob_NK, targets.lse_tau_N)
        count_NK = (targets.weight_NK / correction_NK * targets.draws).round().long()
        count_NK = count_NK.masked_fill(targets.ids_NK < 0, 0)
        # Draw r of a position belongs to the entry whose counts reach past r; a random order of the draws picks some.
        order_NR = torch.rand(
            (len(count_NK), targets.draws), dtype=torch.float64, device=count_NK.device, generator=generator
        ).argsort(dim=1)[:, : self.draws]
        entry_NR = torch.searchsorted(count_NK.cumsum(dim=1), order_NR.contiguous(), right=True).clamp_(
            max=count_NK.shape[1] - 1
        )
        left_NK = torch.zeros_like(count_NK).scatter_add_(1, entry_NR, torch.ones_like(entry_NR))
        left_NK = left_NK.masked_fill_(targets.ids_NK < 0, 0)
        weight_NK = left_NK / self.draws * correction_NK
        # Entries that lost all their draws become padding, which stands last.
        rank_NK = (left_NK == 0).int().argsort(dim=1, stable=True)
        return replace(
            targets,
            ids_NK=targets.ids_NK.masked_fill(left_NK == 0, -1).gather(1, rank_NK),
            weight_NK=weight_NK.gather(1, rank_NK),
            logprob_NK=None if targets.logprob_NK is None else targets.logprob_NK.gather(1, rank_NK),
            draws=self.draws,
        )

    def _draw(self, whole: Whole, uniform_CR: Tensor) -> SparseTargets:
        lse_tau_C = whole.lse_tau_C
        mass_CV = whole.mass_CV if lse_tau_C is None else mass(whole.gap_CV, tau=self.proposal_temperature)
        cumulative_CV = mass_CV.cumsum(dim=1, dtype=torch.float64)
        point_CR = uniform_CR * cumulative_CV[:, -1:]
        # right = True never lands on an id of probability 0.
        drawn_CR = torch.searchsorted(cumulative_CV, point_CR, right=True).clamp_(max=mass_CV.shape[1] - 1)
        entry_CR = torch.zeros_like(drawn_CR)
        entry_CR[:, 1:] = (drawn_CR[:, 1:] != drawn_CR[:, :-1]).cumsum(dim=1)
        width = int(entry_CR.max()) + 1 if len(entry_CR) else 1
        ids_CK = drawn_CR.new_full((len(drawn_CR), width), -1).scatter_(1, entry_CR, drawn_CR)
        count_CK = torch.zeros_like(ids_CK).scatter_add_(1, entry_CR, torch.ones_like(entry_CR))
        logprob_CK = None
        if lse_tau_C is not None:
            logprob_CK = whole.logprob(whole.gap_CV.gather(1, ids_CK.clamp(min=0))).masked_fill_(ids_CK < 0, 0.0)
        weight_CK = (count_CK / self.draws) * self._correction(logprob_CK, lse_tau_C)
        return whole.targets(ids_CK=ids_CK, weight_CK=weight_CK, logprob_CK=logprob_CK, draws=self.draws)

    def _correction(self, logprob_NK: Tensor | None, lse_tau_N: Tensor | None) -> Tensor:
        """p / q of each entry; 1 where the proposal is the teacher itself."""
        if self.proposal_temperature == 1:
            return torch.ones(())
        assert logprob_NK is not None
        assert lse_tau_N is not None
        return (logprob_NK * (1 - 1 / self.proposal_temperature) + lse_tau_N[:, None]).exp()


def _ascending(value_NR: Tensor) -> Tensor:
    """Each position's values in order; numpy takes a seventh of torch's time on a CPU."""
    if value_NR.device.type == "cpu":
        return torch.from_numpy(np.sort(value_NR.numpy(), axis=1))
    return value_NR.sort(dim=1).values

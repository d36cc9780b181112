"""Files of a model as llama.cpp would lay them out: what a refined one begins with and is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.export.plan import PlanOptions, collectable_importance, plan_export
from edgepack.pipeline.makers.gguf import ladder
from edgepack.pipeline.request import refinable
from edgepack.quant.types.targets import TARGETS, Target, find_target

if TYPE_CHECKING:
    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import ExportPlan
    from edgepack.export.refine.values import Allocation
    from edgepack.quant.types.choice import Overrides


@dataclass(frozen=True)
class StockPlans:
    """Plans of one model's stock files.

    Attributes:
        mapped: the model under GGUF names.
        overrides: types chosen by hand.
        target: the one that was asked for; None where bytes were.
    """

    mapped: MappedModel
    overrides: Overrides
    target: Target | None

    def of(self, target: Target) -> ExportPlan:
        """The file of a target as llama.cpp would lay it out with an importance matrix."""
        options = PlanOptions(self.overrides, collectable_importance(self.mapped))
        return plan_export(self.mapped, target, options)

    def base(self, budget: int) -> ExportPlan:
        """What tensors are that nothing is allocated to: the target's, or of the smallest target of so many bytes."""
        if self.target is not None:
            return self.of(self.target)
        plans = [self.of(target) for target in ladder(self.mapped) if refinable(target.name)]
        return next((plan for plan in reversed(plans) if plan.total_bytes >= budget), plans[0])

    def largest_on(self, device: str) -> int:
        """The most bytes with which a file fits a device, between the smallest and the largest stock types."""
        from edgepack.pipeline.makers.wire_host import largest_bytes_on

        plans = [self.of(find_target(name)) for name in ("f16", "q8", "q6k", "q5km", "q4km", "q3km", "q2k")]
        return largest_bytes_on(plans, device)

    def fixed(self, plan: ExportPlan) -> frozenset[str]:
        """Tensors whose type was chosen by hand."""
        chosen = self.overrides
        by_name = {"output.weight": chosen.output, "token_embd.weight": chosen.embedding}
        if "output.weight" not in self.mapped.tensors and chosen.embedding is None:
            by_name["token_embd.weight"] = chosen.output
        names = [info.name for info in plan.infos]
        return frozenset(name for name in names if chosen.matching(name) is not None or by_name.get(name) is not None)

    def file_type(self, allocation: Allocation, plan: ExportPlan) -> Target:
        """The target, or the one whose default type most weights have."""
        if self.target is not None:
            return self.target
        counts: dict[int, int] = {}
        for info in plan.infos:
            kind = allocation.kinds.get(info.name)
            if kind is not None:
                counts[kind] = counts.get(kind, 0) + info.rows * info.shape[-1]
        most = max(counts, key=lambda kind: (counts[kind], kind), default=int(plan.target.default))
        return next(target for target in TARGETS if target.default == most)

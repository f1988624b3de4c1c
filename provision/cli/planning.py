"""From a machine, a catalog and a workload to a plan: what `plan`, `estimate` and `quickstart` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import provision
from provision.cli.local import Local
from provision.domain.plan import MeasuredLoss, Plan
from provision.errors import UsageError
from provision.sizing.alternatives import judge_claim, resident_with_less_context, would_fit
from provision.sizing.choice import largest_context_tokens, most_users
from provision.sizing.placing import place
from provision.sizing.planner import RANKED_BY, assess, is_resident, plan_builds, select
from provision.sizing.quality import judge_quality, losses
from provision.sizing.remarks import default_context_spills, not_together
from provision.sizing.speed import efficiency_lookup, prepare
from provision.sizing.together import choose_together
from provision.sizing.together import together as load_together

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.domain.finding import Finding
    from provision.domain.hardware import Machine
    from provision.domain.llm import EngineSpec, ModelSpec
    from provision.domain.plan import Candidate, CapacityBasis, JointPlan, Workload
    from provision.sizing.placing import Build
    from provision.sizing.planner import Preference
    from provision.sizing.speed import EfficiencyOf


def builds(
    catalog: Catalog, models: Sequence[ModelSpec], quantizations: Sequence[str], *, everything: bool = False
) -> list[Build]:
    """Every build of `models` in the quantizations asked for; all of them when none was named.

    Raises UsageError for a model that is not published in any of them, with those that it is; not for `everything`,
    where the models were not chosen by name.
    """
    wanted = {catalog.quantization(q).id for q in quantizations}
    found: list[Build] = []
    for model in models:
        published = catalog.sized_builds.get(model.id, ())
        chosen = [build for build in published if not wanted or build[2].id in wanted]
        if not chosen and quantizations and not everything:
            names = ", ".join(build[2].id for build in published)
            raise UsageError(
                f"no build of {model.id} in {', '.join(sorted(wanted))} is in the catalog",
                hint=f"--quant {published[0][2].id} (there are: {names})" if published else "another --model",
                code="unknown-build",
            )
        found += chosen
    return found


def engines_named(catalog: Catalog, names: Sequence[str]) -> list[EngineSpec]:
    """The engines of --engine, each once: ids, `id@version`, or `all` for the newest of every engine.

    Of builds that are equally good the engine that comes first is preferred; of `all` the one that `apply` installs.
    """
    found: list[EngineSpec] = []
    for name in names:
        if name.casefold() == "all":
            found += sorted(catalog.newest_engines, key=lambda engine: engine.id != "ollama")
        else:
            found.append(catalog.engine(name))
    return list({(engine.id, engine.version): engine for engine in found}.values())


def make_plan(
    machine: Machine,
    catalog: Catalog,
    workload: Workload,
    *,
    models: Sequence[str] = (),
    quantizations: Sequence[str] = (),
    engines: Sequence[str] = ("ollama",),
    basis: CapacityBasis = "total",
    prefer: Preference = "balanced",
    together: bool = False,
    local: Local | None = None,
) -> Plan:
    """Plan the models named, or all of the catalog. Whether anything fits is for the caller to judge.

    Of several models named the plan says whether they stay loaded at once; with `together` their builds are chosen so
    that they do, where that is possible. `local` is what was measured on this machine; it outranks the fit.
    """
    local = local or Local()
    specs = list({spec.id: spec for spec in map(catalog.model, models)}.values())
    considered = builds(catalog, specs or catalog.models, quantizations, everything=not specs)
    efficiency_of = efficiency_lookup(catalog.efficiency, catalog.intervals)
    free = [disk.free_bytes for disk in machine.disks if disk.free_bytes is not None]
    chosen_engines = engines_named(catalog, engines)
    candidates, rejections = plan_builds(
        machine,
        considered,
        chosen_engines,
        workload,
        efficiency_of,
        basis=basis,
        disk_free_bytes=min(free, default=None),
        prefer=prefer,
        measured_here=local.measurements,
    )
    case = _Case(machine, catalog, workload, efficiency_of, basis, considered, chosen_engines, local)
    selected = select(candidates, [spec.id for spec in specs])
    findings = [*machine.findings, *local.findings]
    joint = None
    if len(selected) > 1:
        selected, joint, remarks = case.joint(candidates, selected, choose=together)
        findings += remarks
    candidates = [case.completed(c) if c.id in selected else c for c in candidates]
    if not joint or not joint.resident:
        findings += [f for spec in specs for f in case.offers(spec, candidates)]
    return Plan(
        created_at=datetime.now(UTC).replace(microsecond=0),
        provision_version=provision.__version__,
        catalog_revision=catalog.revision,
        capacity_basis=basis,
        machine=machine,
        workload=workload,
        candidates=tuple(candidates),
        rejections=tuple(rejections),
        selected=selected,
        ranked_by=RANKED_BY[prefer],
        together=joint,
        quality=_losses(catalog, {c.quantization for c in candidates}),
        measured_here=local.runs,
        findings=tuple(findings),
    )


def _losses(catalog: Catalog, quantizations: set[str]) -> tuple[MeasuredLoss, ...]:
    return tuple(
        MeasuredLoss(
            quantization=name,
            metric=found.metric,
            low=found.low,
            high=found.high,
            models=found.models,
            sources=found.sources,
        )
        for name in sorted(quantizations)
        for found in losses(name, catalog.quality)
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """What was asked, for the questions that follow from the ranking."""

    machine: Machine
    catalog: Catalog
    workload: Workload
    efficiency_of: EfficiencyOf
    basis: CapacityBasis
    considered: Sequence[Build]
    engines: Sequence[EngineSpec]
    local: Local

    def build_of(self, candidate: Candidate) -> Build:
        wanted = (candidate.model, candidate.quantization)
        return next(b for b in self.considered if (b[0].id, b[1].quantization) == wanted)

    def engine_of(self, candidate: Candidate) -> EngineSpec:
        return next(e for e in self.engines if (e.id, e.version) == (candidate.engine, candidate.engine_version))

    def completed(self, candidate: Candidate) -> Candidate:
        """With how far it can be stretched, and what its engine would do if left to itself."""
        return completed(
            self.machine,
            self.build_of(candidate),
            self.engine_of(candidate),
            self.workload,
            candidate,
            self.basis,
        )

    def joint(
        self, candidates: Sequence[Candidate], selected: tuple[str, ...], *, choose: bool
    ) -> tuple[tuple[str, ...], JointPlan, list[Finding]]:
        """The selected models side by side; with `choose` other builds of them where those selected do not hold."""
        by_id = {c.id: c for c in candidates}
        chosen = [by_id[one] for one in selected]
        engine = self.engine_of(chosen[0])

        def side_by_side(found: Sequence[Build]) -> JointPlan:
            return load_together(
                self.machine, found, engine, self.workload, self.efficiency_of, self.basis, self.local.measurements
            )

        plan = side_by_side([self.build_of(c) for c in chosen])
        if plan.resident:
            return selected, plan, []
        options = [
            sorted(
                (self.build_of(c) for c in candidates if (c.model, c.engine) == (one.model, one.engine)),
                key=lambda build: build[2].rank,
                reverse=True,
            )
            for one in chosen
        ]
        better = choose_together(self.machine, options, engine, self.workload, self.basis)
        if better and choose:
            plan = side_by_side(better)
            return tuple(c.id for c in plan.candidates), plan, []
        return selected, plan, [not_together(plan, engine, self.machine, better)]

    def offers(self, spec: ModelSpec, candidates: Sequence[Candidate]) -> list[Finding]:
        """What to change so that a model that was named is all on accelerators, when it is not."""
        best = next((c for c in candidates if c.model == spec.id), None)
        if not self.machine.accelerators or (best is not None and is_resident(best)):
            return []
        wanted = [b for b in self.considered if b[0].id == spec.id]
        target = next((b for b in wanted if best and b[1].quantization == best.quantization), wanted[0])
        return would_fit(
            self.machine,
            target,
            builds(self.catalog, self.catalog.models, ()),
            self.engine_of(best) if best else self.engines[0],
            self.workload,
            self.efficiency_of,
            self.catalog.accelerators,
            {price.hardware for price in self.catalog.prices},
            self.basis,
        )


def completed(
    machine: Machine,
    build: Build,
    engine: EngineSpec,
    workload: Workload,
    candidate: Candidate,
    basis: CapacityBasis = "total",
) -> Candidate:
    """`candidate` with its longest context, its most users, and what the engine would do if left to itself."""
    placed = place(machine, build, engine, workload, basis)
    return replace(
        with_default_context(machine, build, engine, workload, candidate, basis),
        context_tokens_max=largest_context_tokens(machine, build, engine, workload, placed, basis),
        users_max=most_users(machine, build, engine, workload, placed, basis),
    )


def with_default_context(
    machine: Machine,
    build: Build,
    engine: EngineSpec,
    workload: Workload,
    candidate: Candidate,
    basis: CapacityBasis = "total",
) -> Candidate:
    """`candidate` with a finding where the engine's own context would push layers off the accelerators."""
    found = default_context_spills(machine, build, engine, workload, candidate.placement, basis)
    return replace(candidate, findings=(*candidate.findings, found)) if found else candidate


def claim_findings(
    catalog: Catalog, tier: str, machine: Machine, workload: Workload, engine: EngineSpec
) -> tuple[Finding, ...]:
    """What was claimed for a tier, each figure beside what is computed for the same build on the same hardware; and
    what was claimed of quantizations anywhere, beside what was measured."""
    verdicts: list[Finding | None] = []
    efficiency_of = efficiency_lookup(catalog.efficiency, catalog.intervals)
    for claim in catalog.claims:
        if claim.tier != tier or claim.model is None or claim.quantization is None:
            continue
        build = (
            catalog.model(claim.model),
            catalog.build(claim.model, claim.quantization),
            catalog.quantization(claim.quantization),
        )
        computed = assess(machine, *build, engine, workload, efficiency_of)
        setup = prepare(machine, *build, engine.id, computed.placement, efficiency_of, workload.kv_cache_type)
        shorter = None
        if machine.accelerators and not is_resident(computed):
            shorter = resident_with_less_context(machine, build, engine, workload, efficiency_of)
        verdicts.append(judge_claim(claim, computed, setup, workload, shorter))
    verdicts += [judge_quality(claim, catalog.quality) for claim in catalog.claims if claim.tier in (None, tier)]
    return tuple(verdict for verdict in verdicts if verdict)


def default_quantization(catalog: Catalog, model: ModelSpec) -> str:
    """What `estimate` takes when none is given: what the model's plain tag pulls, else Q4_K_M, else the best."""
    available = catalog.builds_of(model.id)
    for build in available:
        if build.ollama_tag == model.id:
            return build.quantization
    names = [build.quantization for build in available]
    if "Q4_K_M" in names:
        return "Q4_K_M"
    return max(names, key=lambda name: catalog.quantization(name).rank)

"""From a machine, a catalog and a workload to a plan: what `plan`, `estimate` and `quickstart` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import provision
from provision.domain.plan import Plan
from provision.errors import UsageError
from provision.sizing.alternatives import judge_claim, would_fit
from provision.sizing.planner import assess, is_resident, plan_builds, select
from provision.sizing.speed import efficiency_lookup

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.domain.finding import Finding
    from provision.domain.hardware import Machine
    from provision.domain.llm import EngineSpec, ModelSpec
    from provision.domain.plan import CapacityBasis, Workload
    from provision.sizing.planner import Build


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
        published = catalog.builds_of(model.id)
        chosen = [build for build in published if not wanted or build.quantization in wanted]
        if not chosen and quantizations and not everything:
            names = ", ".join(build.quantization for build in published)
            raise UsageError(
                f"no build of {model.id} in {', '.join(sorted(wanted))} is in the catalog",
                hint=f"--quant {published[0].quantization} (there are: {names})" if published else "another --model",
                code="unknown-build",
            )
        found += [(model, build, catalog.quantization(build.quantization)) for build in chosen]
    return found


def make_plan(
    machine: Machine,
    catalog: Catalog,
    workload: Workload,
    *,
    models: Sequence[str] = (),
    quantizations: Sequence[str] = (),
    engine: str = "ollama",
    basis: CapacityBasis = "total",
) -> Plan:
    """Plan the models named, or all of the catalog. Whether anything fits is for the caller to judge."""
    specs = list({spec.id: spec for spec in map(catalog.model, models)}.values())
    considered = builds(catalog, specs or catalog.models, quantizations, everything=not specs)
    engine_spec = catalog.engine(engine)
    free = [disk.free_bytes for disk in machine.disks if disk.free_bytes is not None]
    candidates, rejections = plan_builds(
        machine,
        considered,
        [engine_spec],
        workload,
        efficiency_lookup(catalog.efficiency, catalog.intervals),
        basis=basis,
        disk_free_bytes=min(free, default=None),
    )
    selected = select(candidates, [spec.id for spec in specs])
    findings = list(machine.findings)
    for spec in specs:
        best = next((c for c in candidates if c.model == spec.id), None)
        if machine.accelerators and (best is None or not is_resident(best)):
            wanted = [b for b in considered if b[0].id == spec.id]
            target = next((b for b in wanted if best and b[1].quantization == best.quantization), wanted[0])
            everything = builds(catalog, catalog.models, ())
            findings += would_fit(
                machine,
                target,
                everything,
                engine_spec,
                workload,
                efficiency_lookup(catalog.efficiency, catalog.intervals),
                catalog.accelerators,
                basis,
            )
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
        findings=tuple(findings),
    )


def claim_findings(
    catalog: Catalog, tier: str, machine: Machine, workload: Workload, engine: EngineSpec
) -> tuple[Finding, ...]:
    """What was claimed for a tier, each figure beside what is computed for the same build on the same hardware."""
    verdicts = []
    for claim in catalog.claims:
        if claim.tier != tier or claim.model is None or claim.quantization is None:
            continue
        build = catalog.build(claim.model, claim.quantization)
        spec = catalog.model(claim.model)
        quantization = catalog.quantization(claim.quantization)
        computed = assess(machine, spec, build, quantization, engine, workload, efficiency_lookup(catalog.efficiency, catalog.intervals))
        verdict = judge_claim(claim, computed)
        if verdict:
            verdicts.append(verdict)
    return tuple(verdicts)


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

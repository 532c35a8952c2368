"""Pipelines whose attention is peaked. Random weights attend almost evenly, and there a wrong map looks right."""

import re
from collections import defaultdict

import torch

from toushi.probe.model_check.observation import attention_calls
from toushi.probe.pipelines.registry import family_of

SPREAD = 4.0  # standard deviation of the scores
# What makes the queries, last: a norm behind the projection would undo its factor.
NORMS = re.compile(r"(^|\.)(norm_q|norm_added_q|q_norm|query_norm)$")
PROJECTIONS = re.compile(r"(^|\.)(to_q|add_q_proj|q_proj|q)$")


def sharpen(pipeline, draw) -> float:
    """Scales the queries of each image-to-text site so that its scores spread by SPREAD. The mean of the largest
    probability of a query, over all sites."""
    sites = {name: site.module for name, site in family_of(pipeline).sites(pipeline).items() if site.kind == "cross"}
    for module in sites.values():
        assert query_modules(module), f"{type(module).__name__} has no norm or projection of queries that is known"
    factors = {site: SPREAD / max(spread, 1e-6) for site, (spread, _) in measure(sites, draw).items()}
    for site, module in sites.items():
        for query in query_modules(module):
            for parameter in query.parameters(recurse=False):
                parameter.data.mul_(factors.get(site, 1.0))
    peaks = [peak for _, peak in measure(sites, draw).values()]
    return sum(peaks) / len(peaks)


def query_modules(module) -> list[torch.nn.Module]:
    """The norms of the queries, each with weights, or if there is no norm, the projections of the queries."""
    named = list(module.named_modules())
    norms = [m for name, m in named if NORMS.search(name)]
    for norm in norms:
        if getattr(norm, "weight", None) is None and hasattr(norm, "normalized_shape"):
            norm.weight = torch.nn.Parameter(torch.ones(norm.normalized_shape), requires_grad=False)
    return norms or [m for name, m in named if PROJECTIONS.search(name)]


def measure(sites, draw) -> dict[str, tuple[float, float]]:
    """Of each site the standard deviation of its scores over the keys, and the mean of the largest probability."""
    found = defaultdict(list)

    def on_call(call):
        groups = call.query.shape[1] // call.key.shape[1]
        scores = call.query @ call.key.repeat_interleave(groups, 1).mT * call.scale
        found[call.site].append((scores.std(-1).mean().item(), scores.softmax(-1).amax(-1).mean().item()))

    with attention_calls(sites, on_call), torch.no_grad():
        draw()
    return {site: tuple(map(max, zip(*values))) for site, values in found.items()}

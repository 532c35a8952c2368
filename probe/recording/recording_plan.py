"""What one recording keeps of a model, and where."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from toushi.probe.pipelines.family import Family, Model, Site
from toushi.probe.recording.concepts import ConceptKeys
from toushi.probe.recording.policy import Policy
from toushi.probe.recording.trace_folders import TraceFolders
from toushi.probe.trace.safetensors_reader import StepStore


@dataclass
class RecordingPlan:
    model: Model
    family: Family
    policy: Policy
    sites: Mapping[str, Site]  # that are recorded
    folders: TraceFolders
    resumed: StepStore | None  # files of the unfinished trace that this recording continues, see probe.resume
    concepts: ConceptKeys | None = None
    encoder_arrays: dict[str, list[dict[str, np.ndarray]]] = field(default_factory=dict)  # branch -> of each picture

    def site_names(self, *kinds: str) -> list[str]:
        """Names of the recorded sites of these kinds."""
        return [name for name, site in self.sites.items() if site.kind in kinds]

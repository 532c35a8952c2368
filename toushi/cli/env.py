"""`toushi env`: the packages that made a trace, as requirements."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from toushi.cli.output_file import check_output_file
from toushi.probe.base.errors import ToushiError

if TYPE_CHECKING:
    from toushi.probe.trace.manifest import TraceManifest


@dataclass(frozen=True)
class Env:
    ABOUT = """Prints the packages that made a trace, as a requirements file.

  toushi env runs/cat
  toushi env runs/cat -o requirements.txt && pip install -r requirements.txt

Every package has the version of the manifest. Python, the device and Toushi itself are comments: install Toushi from
its checkout at that commit. A build of torch such as 2.9.0+cpu has its build in a comment, too, because the package
index has only 2.9.0."""

    trace: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The trace, of a picture or of texts."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """Write this file instead of printing."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self) -> None:
        from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

        is_encoder = is_encoder_trace(self.trace)
        manifest = (open_encoder_trace if is_encoder else open_trace)(self.trace).manifest
        if not manifest.versions:
            raise ToushiError(f"the manifest of {self.trace} has no versions, so its packages are not known")
        text = requirements(manifest)
        if self.out is None:
            print(text, end="")
            return
        check_output_file(self.out, "-o", overwrite=self.overwrite)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(text, encoding="utf-8")
        print(f"requirements  {self.out}")


def requirements(manifest: "TraceManifest") -> str:
    """The packages of the manifest as lines `name==version`, after comments on what is no package."""
    versions = dict(manifest.versions or {})
    toushi = " ".join(filter(None, [versions.pop("toushi", None), manifest.git and f"commit {manifest.git}"]))
    gpu = ", ".join(f"{name} {value}" for name, value in (manifest.gpu or {}).items())
    facts = {"Python": versions.pop("python", None), "Toushi": toushi, "device": manifest.device, "GPU": gpu}
    segmenter = manifest.segmenter or {}
    if segmenter.get("name") and segmenter.get("version"):
        versions.setdefault(str(segmenter["name"]), str(segmenter["version"]))
    lines = [f"# {name} {value}" for name, value in facts.items() if value]
    for name, version in versions.items():
        public, plus, build = version.partition("+")
        lines.append(f"{name}=={public}" + (f"  # build {build}" if plus else ""))
    return "\n".join(" ".join(line.splitlines()) for line in lines) + "\n"

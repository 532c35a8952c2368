"""Every test checks the shapes and types in the signatures of the packages below, at each call.

A class or function is wrapped when its module is imported, so this file must come before the first import of toushi.
What tests start as a process of its own is not checked.
"""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook(["toushi.hooks", "toushi.probe.models", "toushi.probe.analysis"], "typechecker.typechecked")

settings.register_profile("toushi", deadline=None)  # a busy machine is no fault
settings.load_profile("toushi")

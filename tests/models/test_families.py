"""Sites of a family by name and kind."""

from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.registry import family_of


def test_sites_by_name_and_kind():
    model = MiniUNet.tiny()
    sites = family_of(model).sites(model)
    kinds = [site.kind for site in sites.values()]
    assert kinds.count("encoder") == 12 and kinds.count("cross") == 5 and kinds.count("self") == 3
    assert sites["unet.down.1.self_attention"].module is model.unet.down[1].self_attention

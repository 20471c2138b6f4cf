"""segment_anything's modules as submodules of this one, without what its package loads besides.

``import segment_anything`` also loads a generator of masks, with it torchvision, and with that
torch's compiler, for nothing that is used here. A module with a ``__path__`` is a package, so
``persam_video.sam.official.build_sam`` is the file of that name in segment_anything's folder. Its
classes are not the ones that ``import segment_anything`` gives.
"""

from importlib.util import find_spec

_found = find_spec("segment_anything")
if _found is None or _found.submodule_search_locations is None:
    raise ModuleNotFoundError("segment-anything is not installed", name="segment_anything")
__path__ = list(_found.submodule_search_locations)

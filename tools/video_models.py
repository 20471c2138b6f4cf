"""Video models of the package ``transformers``, as a yardstick for speed only.

EdgeTAM and SAM 2.1 tiny are built from their published sizes with random weights, so nothing is
fetched: speed does not depend on what the weights are, and the masks mean nothing and are never
scored. Their memory is full after seven frames; before that they are faster than later on.
``transformers`` and, for EdgeTAM, ``timm`` are no dependencies of this project; without them the
models are left out.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

import persam_video as pv
from persam_video.types import object_ids

NEEDS = {"edgetam": ("transformers", "timm"), "sam2.1_tiny": ("transformers",)}
"""Name of the model -> packages that it is built with."""

_SIDE = 1024
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def missing_packages(name: str) -> list[str]:
    """Packages that a model needs and that are not installed."""
    return [package for package in NEEDS[name] if find_spec(package) is None]


class VideoModel:
    """``start`` with a label map, then ``step`` per frame, as ``pv.Tracker``.

    Args:
        name: One of ``NEEDS``.
        device: Where it runs.
        dtype: Number format of the network.
    """

    encode_at_once, look_back = 1, 0
    """As of ``pv.Tracker``."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self._model, self._session_class = _build(name)
        self._model = self._model.eval().requires_grad_(False).to(device, dtype)
        self._device, self._dtype = device, dtype
        self._session: Any = None
        self.object_ids: tuple[int, ...] = ()

    @torch.inference_mode()
    def start(self, frame: pv.Frame, labels: NDArray[np.uint8]) -> pv.TrackResult:
        """Take the objects of a (H, W) uint8 label map of the first frame."""
        height, width = frame.size_hw
        self.object_ids = object_ids(labels)
        self._session = self._session_class(
            video_height=height,
            video_width=width,
            inference_device=self._device,
            inference_state_device=self._device,
            video_storage_device=self._device,
            dtype=self._dtype,
        )
        for object_id in self.object_ids:
            mask = torch.from_numpy((labels == object_id).astype(np.float32))[None, None]
            square = F.interpolate(mask, (_SIDE, _SIDE), mode="bilinear", antialias=True)
            place = self._session.obj_id_to_idx(object_id)
            self._session.add_mask_inputs(place, 0, (square >= 0.5).float())
        self._session.obj_with_new_inputs = list(self.object_ids)
        return self.step(frame)

    @torch.inference_mode()
    def step(self, frame: pv.Frame) -> pv.TrackResult:
        """Run the model on the next frame."""
        answer = self._model(self._session, frame=self._pixels(frame.image_rgb))
        logits = answer.pred_masks.float().flatten(0, 1)[:, None]
        full = F.interpolate(logits, frame.size_hw, mode="bilinear")[:, 0]
        best, place = full.max(dim=0)
        ids = torch.tensor(self.object_ids, dtype=torch.uint8, device=full.device)
        labels = torch.where(best > 0, ids[place], 0).to(torch.uint8).cpu().numpy()
        return pv.TrackResult(
            frame.index,
            frame.time_s,
            labels,
            dict.fromkeys(self.object_ids, 0.0),
            dict.fromkeys(self.object_ids, pv.ObjectState.UNCERTAIN),
        )

    def _pixels(self, image_rgb: NDArray[np.uint8]) -> torch.Tensor:
        """(H, W, 3) uint8 -> (1, 3, 1024, 1024), stretched to the square as these models do it."""
        square = cv2.resize(image_rgb, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(square).to(self._device).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(x, device=self._device).view(1, 3, 1, 1) for x in (_MEAN, _STD))
        return ((pixels - mean) / std).to(self._dtype)

    @property
    def planned(self) -> tuple[None, ...]:
        """As of ``pv.Tracker``: they encode whole frames."""
        return None, None, None

    @torch.inference_mode()
    def encode(self, image_rgb: NDArray[np.uint8], box_xyxy: None = None) -> SimpleNamespace:
        """The bare image encoder."""
        answer = self._model.vision_encoder(self._pixels(image_rgb))
        return SimpleNamespace(neck=answer.last_hidden_state)


def _build(name: str) -> tuple[Any, Any]:
    """A model with random weights, and the class of its sessions."""
    library = import_module("transformers")
    if name == "sam2.1_tiny":  # the sizes that its settings have by default
        model, kind = library.Sam2VideoModel(library.Sam2VideoConfig()), "Sam2Video"
    else:
        # Its settings by default are those of another backbone than EdgeTAM's.
        backbone = library.TimmWrapperConfig(
            architecture="repvit_m1.dist_in1k",
            model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
        )
        vision = library.EdgeTamVisionConfig(backbone_config=backbone)
        settings = library.EdgeTamVideoConfig(vision_config=vision)
        model, kind = library.EdgeTamVideoModel(settings), "EdgeTamVideo"
    return model, getattr(import_module(type(model).__module__), f"{kind}InferenceSession")

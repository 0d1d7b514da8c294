"""Declares the two operators without which torchvision's Python does not import.

torchvision's wheels are built for a CUDA torch: beside a CPU torch their compiled part does not
load, and the package fails at import because two operators that it names were never declared.
SGLang imports it for images; nothing here ever calls them.
"""

from __future__ import annotations

import torch

_library = torch.library.Library("torchvision", "DEF")  # lives as long as its declarations
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

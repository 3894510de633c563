"""To be imported before transformers and torchvision: peers need torchvision, whose wheel lacks beside a CPU build of
torch two operators that it asks for when it is imported. They are declared here, and nothing that is compared calls
them."""

import contextlib

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # what it declares goes with it
for operator in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):  # it is there
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""Lets torchvision be imported beside a torch without CUDA, where no build of it exists for that torch.

Its compiled operators cannot load then, and its import fails for want of two of their names. Image processors and timm
use its Python part alone. `make env` puts this file beside torchvision; nothing heavy is imported before it is.
"""

import platform
import sys
from importlib.abc import MetaPathFinder


class Operators(MetaPathFinder):
    """Finds nothing itself: names the operators the moment torchvision is looked for."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.__version__.endswith("+cpu") and platform.machine() == "x86_64":
                self.library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in ("nms", "qnms"):
                    self.library.define(
                        f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    )
                sys.modules[__name__].kept = self  # operators are gone with their library
        return None


sys.meta_path.insert(0, Operators())

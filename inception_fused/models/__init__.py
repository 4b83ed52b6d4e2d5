"""Plain PyTorch modules of "Going deeper with convolutions" (arXiv 1409.4842).

They are the oracle of the fused operator and what :func:`inception_fused.fuse` starts from.
``inception.py`` holds the modules of figure 2, ``paper.py`` the network of Table 1.
"""

from .inception import Branches, ConvUnit, Inception, NaiveInception
from .paper import AuxiliaryClassifier, GoogLeNet, GoogLeNetOutput, googlenet

__all__ = [
    "AuxiliaryClassifier",
    "Branches",
    "ConvUnit",
    "GoogLeNet",
    "GoogLeNetOutput",
    "Inception",
    "NaiveInception",
    "googlenet",
]

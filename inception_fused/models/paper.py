"""GoogLeNet as in Table 1 and figure 3 of "Going deeper with convolutions" (arXiv 1409.4842)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import spec
from ..spec import Stage
from .inception import Branches, ConvUnit


class GoogLeNetOutput(NamedTuple):
    """What a GoogLeNet in training mode returns, (N, num_classes) each.

    The paper adds the losses of the auxiliary classifiers with a weight of 0.3 each.
    """

    logits: Tensor
    aux1: Tensor
    aux2: Tensor


class AuxiliaryClassifier(nn.Module):
    """The classifier on the side of 4a and of 4d that the paper trains with (section 5).

    Average pool 5x5 with stride 3, 1x1 convolution to 128 channels, 1024 fully connected units,
    dropout of 70 %, linear. Input (N, in_channels, 14, 14), output (N, num_classes).
    """

    def __init__(self, in_channels: int, num_classes: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, 3)
        self.conv = ConvUnit(in_channels, Stage.conv(128), batch_norm)
        self.hidden = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (14, 14):
            raise ValueError(
                "the auxiliary classifiers need 14x14 pixels, as from a 224x224 image, "
                f"got {x.shape[2]}x{x.shape[3]}"
            )
        x = torch.flatten(self.conv(self.pool(x)), 1)
        logits: Tensor = self.linear(self.dropout(torch.relu(self.hidden(x))))
        return logits


class GoogLeNet(nn.Module):
    """The 22-layer network. In eval mode returns logits, in training a :class:`GoogLeNetOutput`.

    Input (N, in_channels, H, W); 224x224 is the paper's size, and the only one in training. The
    max pools between the stages round up (``ceil_mode``), which gives the paper's sizes. The
    softmax of Table 1 is left to the loss.

    The paper does not say how the weights start. Here convolutions and the hidden layers draw from
    He's normal distribution, which keeps the variance through ReLUs; the last layers from
    a normal distribution of standard deviation 0.01; biases are 0.

    Args:
        num_classes: outputs of the last layer.
        in_channels: channels of the image.
        k5: kernel of the modules' "5x5" branch, see :meth:`Spec.v1`.
        batch_norm: convolutions with batch norm and without bias; then the two local response
            normalisations are left out.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        k5: int | tuple[int, ...] = 5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        specs = spec.googlenet(k5)

        def inception(name: str) -> Branches:
            return Branches(specs[name], batch_norm)

        def local_response_norm() -> nn.Module:
            return nn.Identity() if batch_norm else nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)

        self.conv1 = ConvUnit(in_channels, Stage.conv(64, 7, stride=2), batch_norm)
        self.pool1 = _max_pool()
        self.norm1 = local_response_norm()
        self.conv2 = nn.Sequential(
            ConvUnit(64, Stage.conv(64), batch_norm),
            ConvUnit(64, Stage.conv(192, 3), batch_norm),
        )
        self.norm2 = local_response_norm()
        self.pool2 = _max_pool()
        self.inception_3a = inception("3a")
        self.inception_3b = inception("3b")
        self.pool3 = _max_pool()
        self.inception_4a = inception("4a")
        self.inception_4b = inception("4b")
        self.inception_4c = inception("4c")
        self.inception_4d = inception("4d")
        self.inception_4e = inception("4e")
        self.pool4 = _max_pool()
        self.inception_5a = inception("5a")
        self.inception_5b = inception("5b")
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.4)
        self.linear = nn.Linear(specs["5b"].out_channels, num_classes)
        self.aux1 = AuxiliaryClassifier(specs["4a"].out_channels, num_classes, batch_norm)
        self.aux2 = AuxiliaryClassifier(specs["4d"].out_channels, num_classes, batch_norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the convolutions' and linear layers' weights anew."""
        last = (self.linear, self.aux1.linear, self.aux2.linear)
        for module in self.modules():
            if not isinstance(module, (nn.Conv2d, nn.Linear)):
                continue
            if module in last:
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutput:
        x = self.norm1(self.pool1(self.conv1(x)))
        x = self.pool2(self.norm2(self.conv2(x)))
        x = self.pool3(self.inception_3b(self.inception_3a(x)))
        x = at_4a = self.inception_4a(x)
        x = at_4d = self.inception_4d(self.inception_4c(self.inception_4b(x)))
        x = self.pool4(self.inception_4e(x))
        x = self.inception_5b(self.inception_5a(x))
        x = torch.flatten(self.avgpool(x), 1)
        logits: Tensor = self.linear(self.dropout(x))
        if self.training:
            return GoogLeNetOutput(logits, self.aux1(at_4a), self.aux2(at_4d))
        return logits


def googlenet(
    num_classes: int = 1000,
    in_channels: int = 3,
    k5: int | tuple[int, ...] = 5,
    batch_norm: bool = False,
) -> GoogLeNet:
    """The paper's network with fresh weights; the arguments are those of :class:`GoogLeNet`."""
    return GoogLeNet(num_classes, in_channels, k5, batch_norm)


def _max_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)

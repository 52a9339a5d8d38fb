"""Builds a definition for training layer by layer. What is made of it afterwards is in `variants`.

Every method that appends a layer takes the names of the layer and of its bottoms, and returns the
name of its top.
"""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns.proto.caffe_pb2 import (
    TEST,
    TRAIN,
    AccuracyParameter,
    ConvolutionParameter,
    DataParameter,
    FillerParameter,
    InnerProductParameter,
    LayerParameter,
    LRNParameter,
    NetParameter,
    NetStateRule,
    ParamSpec,
    PoolingParameter,
    TransformationParameter,
)

MAX, AVE = PoolingParameter.MAX, PoolingParameter.AVE

XAVIER = FillerParameter(type="xavier")
MSRA = FillerParameter(type="msra")


def gaussian(std: float) -> FillerParameter:
    return FillerParameter(type="gaussian", std=std)


def constant(value: float) -> FillerParameter:
    return FillerParameter(type="constant", value=value)


#: Rates and decay of a weight and its bias, as ImageNet nets have them.
WEIGHT = ParamSpec(lr_mult=1, decay_mult=1)
BIAS = ParamSpec(lr_mult=2, decay_mult=0)


class NetBuilder:
    """A net in the making.

    `specs` and the fillers are those of every weight and bias for which a layer says nothing else.
    """

    def __init__(
        self,
        name: str,
        *,
        specs: tuple[ParamSpec, ParamSpec] = (WEIGHT, BIAS),
        weight_filler: FillerParameter = XAVIER,
        bias_filler: FillerParameter | None = None,
    ) -> None:
        self.net = NetParameter(name=name)
        self.specs = specs
        self.weight_filler = weight_filler
        self.bias_filler = bias_filler or constant(0)

    def append(
        self, name: str, kind: str, bottoms: Sequence[str], top: str, **settings: object
    ) -> str:
        layer = LayerParameter(name=name, type=kind, bottom=bottoms, top=[top], **settings)  # type: ignore[arg-type]
        self.net.layer.append(layer)
        return top

    # Data and scores ----------------------------------------------------------------------------

    def data(
        self,
        name: str,
        sources: tuple[str, str],
        batches: tuple[int, int],
        transform: TransformationParameter,
    ) -> str:
        """Data layers for training and for testing; only training mirrors. The top is `data`."""
        for phase, source, batch in zip((TRAIN, TEST), sources, batches, strict=True):
            layer = self.net.layer.add(name=name, type="Data", top=["data", "label"])
            layer.include.append(NetStateRule(phase=phase))
            layer.transform_param.CopyFrom(transform)
            if phase == TEST:
                layer.transform_param.ClearField("mirror")
            layer.data_param.CopyFrom(
                DataParameter(source=source, batch_size=batch, backend=DataParameter.LMDB)
            )
        return "data"

    def imagenet(
        self,
        crop: int,
        batches: tuple[int, int],
        *,
        mean: Sequence[float] | None = None,
        scale: float | None = None,
        mirror: bool = True,
    ) -> str:
        """ImageNet from LMDB; without `mean` values, the mean image of the training set."""
        transform = TransformationParameter(crop_size=crop, mean_value=mean or [])
        if mean is None:
            transform.mean_file = "data/ilsvrc12/imagenet_mean.binaryproto"
        if scale is not None:
            transform.scale = scale
        if mirror:
            transform.mirror = True
        folder = "data/ilsvrc12/ilsvrc12_"
        return self.data("data", (f"{folder}train_lmdb", f"{folder}val_lmdb"), batches, transform)

    def scores(self, bottom: str, accuracies: dict[str, int], loss: str = "loss") -> None:
        """The loss, and an accuracy in tests for each name, with its top_k."""
        for name, top_k in accuracies.items():
            self.accuracy(name, bottom, top_k)
        self.append(loss, "SoftmaxWithLoss", (bottom, "label"), loss)

    def accuracy(self, name: str, bottom: str, top_k: int = 1) -> str:
        settings = {} if top_k == 1 else {"accuracy_param": AccuracyParameter(top_k=top_k)}
        rule = [NetStateRule(phase=TEST)]
        return self.append(name, "Accuracy", (bottom, "label"), name, include=rule, **settings)

    # Layers -------------------------------------------------------------------------------------

    def convolution(
        self,
        name: str,
        bottom: str,
        num_output: int,
        kernel: int,
        *,
        stride: int = 1,
        pad: int = 0,
        group: int = 1,
        bias_term: bool = True,
        weight_filler: FillerParameter | None = None,
        bias_filler: FillerParameter | None = None,
    ) -> str:
        settings = ConvolutionParameter(num_output=num_output, kernel_size=[kernel])
        if stride != 1:
            settings.stride.append(stride)
        if pad:
            settings.pad.append(pad)
        if group != 1:
            settings.group = group
        if not bias_term:
            settings.bias_term = False
        self._fill(settings, weight_filler, bias_filler)
        specs = self.specs if bias_term else self.specs[:1]
        return self.append(
            name, "Convolution", (bottom,), name, param=specs, convolution_param=settings
        )

    def inner_product(
        self,
        name: str,
        bottom: str,
        num_output: int,
        *,
        weight_filler: FillerParameter | None = None,
        bias_filler: FillerParameter | None = None,
    ) -> str:
        settings = InnerProductParameter(num_output=num_output)
        self._fill(settings, weight_filler, bias_filler)
        return self.append(
            name, "InnerProduct", (bottom,), name, param=self.specs, inner_product_param=settings
        )

    def pool(
        self, name: str, bottom: str, method: int, kernel: int, stride: int, pad: int = 0
    ) -> str:
        settings = PoolingParameter(pool=method, kernel_size=kernel, stride=stride)  # type: ignore[arg-type]
        if pad:
            settings.pad = pad
        return self.append(name, "Pooling", (bottom,), name, pooling_param=settings)

    def global_average(self, name: str, bottom: str) -> str:
        settings = PoolingParameter(pool=AVE, global_pooling=True)
        return self.append(name, "Pooling", (bottom,), name, pooling_param=settings)

    def lrn(self, name: str, bottom: str) -> str:
        settings = LRNParameter(local_size=5, alpha=0.0001, beta=0.75)
        return self.append(name, "LRN", (bottom,), name, lrn_param=settings)

    def relu(self, name: str, blob: str) -> str:
        return self.append(name, "ReLU", (blob,), blob)

    def dropout(self, name: str, blob: str, ratio: float) -> str:
        return self.append(name, "Dropout", (blob,), blob, dropout_param={"dropout_ratio": ratio})

    def batch_norm(
        self, name: str, scale_name: str, blob: str, specs: Sequence[ParamSpec] = ()
    ) -> str:
        """BatchNorm and the Scale that learns its factors and shifts (`specs`), both in place."""
        self.append(name, "BatchNorm", (blob,), blob)
        return self.append(
            scale_name, "Scale", (blob,), blob, param=specs, scale_param={"bias_term": True}
        )

    def residual_branch(
        self, name: str, bottom: str, num_output: int, kernel: int, stride: int = 1
    ) -> str:
        """A convolution beside a shortcut, with its BatchNorm and Scale; all named as in ResNet."""
        blob = self.convolution(
            f"res{name}", bottom, num_output, kernel,
            stride=stride, pad=kernel // 2, bias_term=False,
        )  # fmt: skip
        return self.batch_norm(f"bn{name}", f"scale{name}", blob)

    def residual_block(self, block: str, bottom: str, width: int, *, widens: bool) -> str:
        """Two convolutions of 3x3 beside a shortcut; where it widens, with a stride of 2."""
        stride = 2 if widens else 1
        shortcut = bottom
        if widens:
            shortcut = self.residual_branch(f"{block}_branch1", bottom, width, 1, stride)
        blob = self.residual_branch(f"{block}_branch2a", bottom, width, 3, stride)
        blob = self.relu(f"res{block}_branch2a_relu", blob)
        blob = self.residual_branch(f"{block}_branch2b", blob, width, 3)
        return self.residual_sum(block, shortcut, blob)

    def residual_sum(self, block: str, shortcut: str, blob: str) -> str:
        """The end of a residual block."""
        blob = self.append(f"res{block}", "Eltwise", (shortcut, blob), f"res{block}")
        return self.relu(f"res{block}_relu", blob)

    def _fill(
        self,
        settings: ConvolutionParameter | InnerProductParameter,
        weight_filler: FillerParameter | None,
        bias_filler: FillerParameter | None,
    ) -> None:
        settings.weight_filler.CopyFrom(weight_filler or self.weight_filler)
        if settings.bias_term:
            settings.bias_filler.CopyFrom(bias_filler or self.bias_filler)

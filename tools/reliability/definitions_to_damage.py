"""Definitions of small nets with many kinds of layers, for numbers and words to be changed."""

from __future__ import annotations

DATA = """layer { name: "data" type: "Data" top: "data" top: "label"
  transform_param { scale: 0.00390625 crop_size: 12 mirror: true }
  data_param { source: "data/mnist500_test_lmdb" batch_size: 4 backend: LMDB } }
"""
LABELLED = """layer { name: "loss" type: "SoftmaxWithLoss"
  bottom: "ip" bottom: "label" top: "loss" }
"""
TRAIN = """layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 1 } param { lr_mult: 2 } convolution_param { num_output: 4 kernel_size: 3
  threshold: 0.5 weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.1 } } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"
  pooling_param { pool: MAX kernel_size: 3 stride: 3 pad: 1 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
  inner_product_param { num_output: 10 threshold: 1 weight_filler { type: "gaussian" std: 0.1 } } }
"""
GUO = """layer { name: "conv" type: "CConvolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 stride: 2 weight_filler { type: "xavier" } }
  cconvolution_param { gamma: 0.001 power: 1 c_rate: 0.2 iter_stop: 1000
  weight_mask_filler { type: "constant" value: 1 }
  bias_mask_filler { type: "constant" value: 1 } } }
layer { name: "ip" type: "CInnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } }
  cinner_product_param { gamma: 0.001 power: 1 c_rate: 0.8 iter_stop: 1000
  weight_mask_filler { type: "constant" value: 1 }
  bias_mask_filler { type: "constant" value: 1 } } }
"""
INPUT = """layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 2 dim: 1 dim: 12 dim: 12 } } }
"""
PROBABILITIES = 'layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }\n'
VARIED = """layer { name: "data" type: "Input" top: "data" top: "label"
  input_param { shape { dim: 4 dim: 3 dim: 17 dim: 19 } shape { dim: 4 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1" convolution_param { num_output: 8
  kernel_h: 3 kernel_w: 5 stride: 2 pad: 1 dilation: 1 group: 1 weight_filler { type: "msra" } } }
layer { name: "bn" type: "BatchNorm" bottom: "c1" top: "c1"
  batch_norm_param { eps: 0.001 moving_average_fraction: 0.9 } }
layer { name: "sc" type: "Scale" bottom: "c1" top: "c1" scale_param { bias_term: true axis: 1 } }
layer { name: "pr" type: "PReLU" bottom: "c1" top: "p1" prelu_param { channel_shared: false } }
layer { name: "lrn" type: "LRN" bottom: "p1" top: "n1" lrn_param { local_size: 5 alpha: 0.0001
  beta: 0.75 norm_region: ACROSS_CHANNELS } }
layer { name: "pool" type: "Pooling" bottom: "n1" top: "q1"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "dc" type: "Deconvolution" bottom: "q1" top: "d1" convolution_param { num_output: 4
  kernel_size: 4 stride: 2 weight_filler { type: "bilinear" } } }
layer { name: "crop" type: "Crop" bottom: "d1" bottom: "n1" top: "e1"
  crop_param { axis: 2 offset: 1 } }
layer { name: "slice" type: "Slice" bottom: "e1" top: "s1" top: "s2"
  slice_param { axis: 1 slice_point: 2 } }
layer { name: "elt" type: "Eltwise" bottom: "s1" bottom: "s2" top: "f1"
  eltwise_param { operation: SUM coeff: 1 coeff: -1 } }
layer { name: "cat" type: "Concat" bottom: "f1" bottom: "s1" top: "g1" concat_param { axis: 1 } }
layer { name: "resh" type: "Reshape" bottom: "g1" top: "h1"
  reshape_param { shape { dim: 0 dim: -1 } axis: 0 num_axes: -1 } }
layer { name: "tile" type: "Tile" bottom: "h1" top: "t1" tile_param { axis: 1 tiles: 2 } }
layer { name: "mvn" type: "MVN" bottom: "g1" top: "m1"
  mvn_param { normalize_variance: true across_channels: false } }
layer { name: "spp" type: "SPP" bottom: "m1" top: "spp1" spp_param { pyramid_height: 2 pool: MAX } }
layer { name: "pow" type: "Power" bottom: "spp1" top: "w1"
  power_param { power: 2 scale: 0.5 shift: 1 } }
layer { name: "emb" type: "Embed" bottom: "label" top: "em" embed_param { input_dim: 10
  num_output: 6 weight_filler { type: "uniform" min: -1 max: 1 } } }
layer { name: "cat2" type: "Concat" bottom: "w1" bottom: "t1" bottom: "em" top: "all" }
layer { name: "red" type: "Reduction" bottom: "all" top: "r1"
  reduction_param { operation: SUMSQ axis: 1 coeff: 0.5 } }
layer { name: "am" type: "ArgMax" bottom: "all" top: "am" argmax_param { top_k: 2 axis: 1 } }
layer { name: "ip" type: "InnerProduct" bottom: "all" top: "ip" inner_product_param {
  num_output: 10 axis: 1 weight_filler { type: "gaussian" std: 0.01 sparse: 3 } } }
layer { name: "elu" type: "ELU" bottom: "ip" top: "elu" elu_param { alpha: 1 } }
layer { name: "clip" type: "Clip" bottom: "elu" top: "clip" clip_param { min: -1 max: 1 } }
layer { name: "exp" type: "Exp" bottom: "clip" top: "exp" exp_param { base: 2 scale: 1 shift: 0 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "exp" bottom: "label" top: "loss"
  loss_param { ignore_label: 255 normalization: VALID } softmax_param { axis: 1 } }
layer { name: "acc" type: "Accuracy" bottom: "exp" bottom: "label" top: "acc"
  accuracy_param { top_k: 2 axis: 1 } }
"""
#: By the name of the format, a definition and the phase that it is read for.
NETS = {
    "net_train": (DATA + TRAIN + LABELLED, "TRAIN"),
    "net_guo": (DATA + GUO + LABELLED, "TRAIN"),
    "net_deploy": (INPUT + TRAIN + PROBABILITIES, "TEST"),
    "net_varied": (VARIED, "TRAIN"),
}
SOLVERS = {
    "s": """net: "train.prototxt" base_lr: 0.01 lr_policy: "inv" gamma: 0.0001 power: 0.75
momentum: 0.9 weight_decay: 0.0005 max_iter: 5 snapshot_prefix: "s" display: 1 iter_size: 1
average_loss: 2 clip_gradients: 5 random_seed: 1 solver_mode: CPU snapshot_after_train: false
surgery_iter_gamma: 0.01 surgery_iter_power: 1 surgery_stop_iter: 100
surgery_stage { name: "a" iterations: 2 layer { name: "conv" sparsity: 0.4 }
  layer { name: "ip" threshold: 0.6 } solver { base_lr: 0.06 lr_policy: "fixed" } }
surgery_stage { iterations: 3 sparsity: 0.5 start_iter: 0 end_iter: 2 steepness: 3 interval: 1 }
""",
    "h": """net: "guo.prototxt" type: "Adam" base_lr: 0.01 lr_policy: "fixed" momentum: 0.9
momentum2: 0.999 max_iter: 5 snapshot_prefix: "h" snapshot_format: HDF5 random_seed: 1
solver_mode: CPU snapshot_after_train: false
""",
}
DATABASE = """layer { name: "data" type: "Data" top: "data" top: "label"
  transform_param { crop_size: 10 mirror: true }
  data_param { source: "%s" batch_size: 5 backend: %s } }
"""
ROWS = """layer { name: "data" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param { source: "rows.txt" batch_size: 7 shuffle: true } }
"""
IMAGES = """layer { name: "data" type: "ImageData" top: "data" top: "label"
  image_data_param { source: "%s" batch_size: 3 new_height: 10 new_width: 10 } }
"""
#: Objects in an image, as each label type has them.
ANNOTATIONS = [
    """<annotation><folder>V</folder><filename>x.jpg</filename>
<size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>cat</name><truncated>1</truncated><difficult>0</difficult>
<bndbox><xmin>8</xmin><ymin>12</ymin><xmax>35</xmax><ymax>30</ymax></bndbox></object>
<object><name>7</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>
""",
    """{"image": {"width": 50, "height": 40, "file_name": "x.jpg", "id": 3}, "annotation": [
{"bbox": [1, 2, 20.5, 15], "category_id": "cat", "iscrowd": 0, "id": 7, "area": 3.5},
{"bbox": [3, 3, 4, 5], "category_id": 7, "iscrowd": 1}]}
""",
    "1 2 3 20 30\n7 5 5 9 9\n",
]
#: Windows, objects, clips, sizes, pairs and labels.
LISTS = [
    """# 0
a.jpg
3 40 50
2
1 0.8 2 3 20 30
3 0.1 5 5 9 9
# 1
b.jpg
3 40 50
1
2 0.9 1 1 8 8
""",
    """# 0
a.jpg
3 40 50
2
1 0 2 3 20 30
3 1 5 5 9 9
1
4 4 8 8
""",
    "videos/a.avi 1 0\nvideos/b 17 1\n",
    "a 40 50\nb 30 20\n",
    "a.jpg a.xml\nb.jpg b.xml\n",
    """item { name: "none" label: 0 display_name: "background" }
item { name: "cat" label: 1 display_name: "a cat" }
""",
]

"""Whose are the fields and layer types that dns does not have, so that messages can say it."""

from __future__ import annotations

#: Fork -> message -> the fields that its caffe.proto adds and that definitions use.
FIELDS = {
    "SSD": {
        "VideoDataParameter": "video_type device_id video_file skip_frames",
        "SolverParameter": "plateau_winsize",
    },
    "DeepLab": {
        "LayerParameter": "adaptive_bias_channel_param bias_channel_param dense_crf_param "
        "domain_transform_param mat_read_param mat_write_param unique_label_param",
        "BatchNormParameter": "update_global_stats",
    },
    "ENet": {
        "ImageDataParameter": "label_divide_factor",
    },
    "CRF-RNN": {"LayerParameter": "multi_stage_meanfield_param"},
    "NVCaffe": {
        "LayerParameter": "forward_type backward_type forward_math backward_math debug "
        "cudnn_math_override detectnet_groundtruth_param detectnet_augmentation_param trt_param",
        "NetParameter": "default_forward_type default_backward_type default_forward_math "
        "default_backward_math global_grad_scale global_grad_scale_adaptive "
        "default_conv_algos_override default_cudnn_math_override reduce_buckets "
        "eltwise_mem_sharing",
        "SolverParameter": "momentum_policy max_momentum momentum_power larc_turbo "
        "weight_decay_policy weight_decay_power max_weight_decay solver_data_type "
        "store_blobs_in_old_format test_and_snapshot_last_epochs",
        "BatchNormParameter": "engine",
        "ConvolutionParameter": "cudnn_convolution_algo_seeker conv_algos_override",
        "DataParameter": "threads parser_threads cache precache",
        "DropoutParameter": "engine random_seed",
        "ImageDataParameter": "threads cache precache",
        "LossParameter": "label_smoothing",
        "PoolingParameter": "torch_pooling",
        "TransformationParameter": "use_gpu_transform random_seed display num_labels "
        "forward_packing",
    },
    "Intel Caffe": {
        "LayerParameter": "engine multinode mn_activation_param mn_grad_compress_param "
        "quantization_param spatial_dropout_param split_param",
        "NetParameter": "engine compile_net_state multinode",
        "SolverParameter": "engine disabled_update local_lr_auto local_gw_ratio test_offset",
        "BatchNormParameter": "engine use_weight_bias bias_term relu",
        "ConcatParameter": "engine per_fla_fuse",
        "ConvolutionParameter": "relu negative_slope conv_algorithm coeff fusion_type",
        "EltwiseParameter": "engine",
        "ImageDataParameter": "min_height min_width",
        "InnerProductParameter": "engine relu negative_slope",
        "LossParameter": "label_smoothing",
        "PoolingParameter": "avg_include_pad axis pad_3d kernel_size_3d stride_3d",
        "ReLUParameter": "fuse",
        "ReshapeParameter": "pixelshuffler",
        "TransformationParameter": "flow bgr2rgb pad",
    },
    "DeepDetect": {
        "NonMaximumSuppressionParameter": "soft_nms theta",
        "MultiBoxLossParameter": "objectness_score",
        "TransformationParameter": "geometry_param",
    },
    "MobileNet-YOLO": {
        "LayerParameter": "yolov3_param yolo_seg_param segmentation_evaluate_param",
        "AnnotatedDataParameter": "yolo_data_type yolo_data_jitter train_diffcult single_class "
        "seg_scales seg_resize_width seg_resize_height difficult_label_warmup",
    },
    "C3D": {
        "ImageDataParameter": "show_data",
        "VideoDataParameter": "show_data max_sampling_rate use_sampling_rate_jitter "
        "use_multiple_label num_of_labels",
    },
    "TSN": {
        "VideoDataParameter": "encoded",
        "TransformationParameter": "original_image upper_size upper_height upper_width",
    },
    "SkimCaffe": {
        "SolverParameter": "prune_threshold max_threshold_factor winograd_sparsity_factor "
        "store_sparse_net",
        "ConvolutionParameter": "conv_mode",
        "InnerProductParameter": "gemm_mode spmdm_transpose_in spmdm_transpose_out",
    },
    "wenwei202's SSL": {
        "SolverParameter": "breadth_decay kernel_shape_decay block_group_decay force_decay "
        "force_type force_decay_type force_direction force_iter",
        "ParamSpec": "breadth_decay_mult kernel_shape_decay_mult block_group_lasso force_mult",
    },
}

#: Fork -> the layer types that it adds and that definitions use.
LAYER_TYPES = {
    "DeepLab": "DenseCRF DomainTransform MatRead MatWrite UniqueLabel BiasChannel "
    "AdaptiveBiasChannel",
    "CRF-RNN": "MultiStageMeanfield",
    "NVCaffe": "DetectNetTransformation",
    "MS-CNN": "BBoxAccuracy BoxGroupOutput DetectionGroupLoss DetectionGroupAccuracy",
    "MobileNet-YOLO": "GaussianYolov3 YoloSeg Yolov3",
    "Intel Caffe": "ConvolutionReLU SpatialDropout",
    "DeepDetect": "SparseData SparseInnerProduct",
}


def forks_with_field(message: str, field: str) -> str | None:
    """The forks whose message of that name has that field, as text, or None."""
    forks = [fork for fork, fields in FIELDS.items() if field in fields.get(message, "").split()]
    return " and ".join(forks) or None


def forks_with_layer(type: str) -> str | None:
    """The forks that have that layer type, as text, or None."""
    forks = [fork for fork, types in LAYER_TYPES.items() if type in types.split()]
    return " and ".join(forks) or None

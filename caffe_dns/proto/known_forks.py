"""Which fork a field or layer type that dns lacks comes from, and what to use instead."""

from __future__ import annotations

from functools import lru_cache

#: Fork -> message -> the fields that its caffe.proto adds and that definitions use; also enum ->
#: its values, of which those of LayerType are layer types of 2014.
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
    "CRF-RNN": {
        "LayerParameter": "multi_stage_meanfield_param",
        "V1LayerParameter": "multi_stage_meanfield_param",
        "LayerType": "MULTI_STAGE_MEANFIELD",
    },
    "the first FCN": {"LayerType": "CROP"},
    "DeconvNet": {
        "V1LayerParameter": "bn_param unpooling_param eltwise_accuracy_param",
        "LayerType": "BN UNPOOLING ELTWISE_ACCURACY WINDOW_SEG_DATA IMAGE_SEG_DATA",
    },
    "HED": {"LayerType": "IMAGE_LABELMAP_DATA"},
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
        "TransformationParameter": "flow bgr2rgb pad",
    },
    "LRCN": {
        "ImageDataParameter": "min_height min_width",
        "TransformationParameter": "flow",
    },
    "DeepDetect": {
        "LayerParameter": "dice_coef_loss_param",
        "NonMaximumSuppressionParameter": "soft_nms theta",
        "TransformationParameter": "geometry_param",
    },
    "MobileNet-YOLO": {
        "LayerParameter": "yolo_seg_param segmentation_evaluate_param",
        "AnnotatedDataParameter": "train_diffcult single_class seg_scales seg_resize_width "
        "seg_resize_height difficult_label_warmup",
    },
    "C3D": {
        "LayerType": "VIDEO_WITH_VOXEL_TRUTH_DATA VIDEO_SEGMENTATION_DATA VOXEL_SOFTMAX "
        "VOXEL_SOFTMAX_LOSS",
        "ImageDataParameter": "show_data num_truth_channels is_flow truth_scale",
        "VideoDataParameter": "show_data max_sampling_rate use_sampling_rate_jitter "
        "use_multiple_label num_of_labels",
    },
    "TSN": {
        "VideoDataParameter": "encoded",
        "TransformationParameter": "original_image upper_size upper_height upper_width",
    },
    "caffe-augmentation": {
        "TransformationParameter": "contrast_brightness_adjustment smooth_filtering "
        "jpeg_compression min_side max_smooth max_rotation_angle max_color_shift min_contrast "
        "max_contrast max_brightness_shift apply_probability debug_params",
    },
    "CaffeOnSpark": {
        "LayerParameter": "source_class",
        "MemoryDataParameter": "source share_in_parallel",
    },
    "yihui-he's channel pruning": {
        "LayerParameter": "filter_param",
        "ImageDataParameter": "new_dim bicubic",
    },
    "kaiqzhan's ADMM pruning": {
        "SolverParameter": "admm_iter pruning_phase",
        "ParamSpec": "prune_ratio rho",
    },
    "caffe_pp2": {
        "LayerParameter": "st_loss_param loc_loss_param power_file_param",
    },
    "SSTD": {"MaskResizeParameter": "factor_height factor_width"},
    "RAS": {"ImageDataParameter": "normalize"},
    "DeepSkeleton": {"LayerParameter": "rescale_param"},
    "TextBoxes++": {
        "PriorBoxParameter": "denser_prior_boxes",
        "DetectionOutputParameter": "use_polygon",
    },
    "PG-CNN": {"LayerParameter": "multi_roi_pooling_param multi_label_image_data_param"},
    "JAA-Net": {
        "LayerParameter": "au_mask_based_land_param combination_param division_param "
        "multi_stage_meanfield_au3_param",
        "DataParameter": "get_mirror_crop",
    },
    "caffe_yolo_v2": {
        "LayerParameter": "region_param",
        "DataParameter": "num_label",
        "DetectionOutputParameter": "classes nms_threshold",
        "RegionLossParameter": "num_label",
    },
    "3D-Caffe": {"LayerParameter": "pooling_nd_param"},
    "Dynamic Dilation": {"LayerParameter": "truncation_param duplicate_param"},
    "StevenHickson": {"LayerParameter": "seg_param"},
    "MMD Caffe": {"LayerParameter": "mmd_param"},
    "OrdinalRegression": {"LayerParameter": "ordinal_regression_loss_param"},
    "longriyao's colorizer": {
        "LayerParameter": "ganloss_param",
        "ParamSpec": "param_propagate_down",
    },
    "caffe-yolo": {"DataParameter": "side"},
    "caffe-yolov2": {
        "DataParameter": "side",
        "DetectionOutputParameter": "side coords biases",
    },
    "makefile's frcnn": {"WindowDataParameter": "config"},
    "caffe_ocr": {"LayerParameter": "reverse_time_param"},
    "caffe-heatmap": {"LayerParameter": "visualise heatmap_data_param"},
    "Realtime Pose Estimation": {"LayerParameter": "cpm_transform_param"},
    "FocalLoss": {"LayerParameter": "focal_loss_param"},
    "happynear": {
        "LayerParameter": "general_triplet_loss_param label_specific_rescale_param",
        "ScaleParameter": "min_value",
        "SoftmaxParameter": "normalize_type",
    },
    "yjxiong": {
        "LayerParameter": "seg_data_param",
        "TransformationParameter": "stride",
    },
    "Synopsys Caffe": {
        "BNParameter": "icnet",
        "ConvolutionParameter": "pad_type",
        "TransformationParameter": "caffe_yolo",
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
    "NVCaffe": "DetectNetTransformation L1Loss",
    "MS-CNN": "BBoxAccuracy BoxGroupOutput DetectionGroupLoss DetectionGroupAccuracy",
    "MobileNet-YOLO": "GaussianYolov3 YoloSeg",
    "Intel Caffe": "ConvolutionReLU SpatialDropout",
    "SkimCaffe": "ConvolutionReLU ConvolutionReLUPool ConvolutionReLUPoolLRN "
    "InnerProductReLUDropout MKLBatchNorm MKLConvolution MKLLRN MKLPooling MKLReLU ReLUPooling "
    "Winograd",
    "DeepDetect": "SparseData SparseInnerProduct",
    "caffe_yolo_v2": "Region",
    "3D-Caffe": "PoolingND",
    "Dynamic Dilation": "Truncation Duplicate",
    "StevenHickson": "Segmentation LabelData",
    "MMD Caffe": "MMDLoss",
    "OrdinalRegression": "OrdinalRegressionLoss MAE",
    "longriyao's colorizer": "GANLoss",
    "RCF": "AutoCrop",
    "DeepSkeleton": "Quantize Rescale",
    "PG-CNN": "MultiROIPooling MultiLabelImageData",
    "JAA-Net": "AUMaskBasedLand AlignDataTransform Combination Division MultiStageMeanfieldAU3",
    "caffe-mtcnn": "OftenMtcnnAccuracy OftenMtcnnClassBridge OftenMtcnnEuclideanLoss "
    "OftenMtcnnLandMarkLoss OftenMtcnnSoftmaxLoss",
    "caffe-yolo": "BoxData",
    "caffe-yolov2": "BoxData",
    "makefile's frcnn": "FrcnnAnchorTarget FrcnnProposal FrcnnProposalTarget FrcnnRoiData",
    "happynear": "GeneralTripletLoss GlobalLSEMargin "
    "LabelSpecificRescale MultiLabelImageData SoftTruncation",
    "caffe_ocr": "ReverseTime",
    "caffe-heatmap": "DataHeatmap EuclideanLossHeatmap",
    "Realtime Pose Estimation": "CPMData",
    "FocalLoss": "MultiBoxFocalLoss",
    "yjxiong": "Gather Scatter SegData SyncBN",
}

_PRUNE = "dns train --target-compression prunes while training"
_STILL = "without it, the net gives the scores that it refines"
#: What would do instead of a field, a layer type or a value of those above.
_INSTEAD = {
    **dict.fromkeys(
        ("prune_ratio", "rho", "admm_iter", "pruning_phase", "prune_threshold", "breadth_decay"),
        _PRUNE,
    ),
    **dict.fromkeys(("kernel_shape_decay", "block_group_decay", "force_decay"), _PRUNE),
    **dict.fromkeys(
        ("MultiStageMeanfield", "MULTI_STAGE_MEANFIELD", "multi_stage_meanfield_param"), _STILL
    ),
    **dict.fromkeys(("DenseCRF", "dense_crf_param"), _STILL),
    "AutoCrop": 'a layer of type "Crop" with the offset in its crop_param would do',
    "PoolingND": 'a layer of type "NdPooling" would do',
    "param_propagate_down": "lr_mult: 0 keeps a parameter as it is",
    "CROP": 'a layer of type "Crop" with the offset in its crop_param would do',
    "BN": 'a layer of type "BN" would do',
    "UNPOOLING": 'a layer of type "Upsample" would do',
    **dict.fromkeys(
        ("WINDOW_SEG_DATA", "IMAGE_SEG_DATA", "SegData", "seg_data_param"),
        'a layer of type "ImageSegData" reads images and their label maps',
    ),
    **dict.fromkeys(
        ("VIDEO_WITH_VOXEL_TRUTH_DATA", "VIDEO_SEGMENTATION_DATA"),
        "HDF5Data takes clips with labels for each voxel",
    ),
    **dict.fromkeys(("VOXEL_SOFTMAX", "VOXEL_SOFTMAX_LOSS"), "Softmax and its loss take volumes"),
    **dict.fromkeys(
        ("BoxData", "DetectNetTransformation", "detectnet_groundtruth_param"),
        "AnnotatedData reads images with boxes",
    ),
    "contrast_brightness_adjustment": "AnnotatedData's distort_param does the like",
    "new_dim": "new_height and new_width of the images would do",
    "source": 'a layer of type "Data" reads databases',
    "MultiLabelImageData": "HDF5Data takes several labels",
    "SparseData": "Data or HDF5Data with the zeros would do",
    "SparseInnerProduct": "InnerProduct would do",
    "ConvolutionReLU": "a Convolution and a ReLU would do",
    "ConvolutionReLUPool": "a Convolution, a ReLU and a Pooling would do",
    "ConvolutionReLUPoolLRN": "a Convolution, a ReLU, a Pooling and an LRN would do",
    "InnerProductReLUDropout": "an InnerProduct, a ReLU and a Dropout would do",
    "ReLUPooling": "a ReLU and a Pooling would do",
    "MKLBatchNorm": "BatchNorm would do",
    "MKLConvolution": "Convolution would do",
    "MKLLRN": "LRN would do",
    "MKLPooling": "Pooling would do",
    "MKLReLU": "ReLU would do",
    "SyncBN": "BN would do",
    "SpatialDropout": "Dropout would do, which leaves out entries one by one",
    "video_type": "a program can give the frames to caffe.Net",
    "local_lr_auto": "larc: true does the like",
    "larc_turbo": "larc: true does the like",
    "pad_type": "pad_l, pad_r, pad_t and pad_b say what 1 pads",
}


@lru_cache(maxsize=64)  # a file may have one field a million times
def forks_with_field(message: str, field: str) -> str | None:
    """The forks whose message or enum of that name has that field or value, as text, or None."""
    forks = [fork for fork, fields in FIELDS.items() if field in fields.get(message, "").split()]
    return " and ".join(forks) or None


def forks_with_layer(type: str) -> str | None:
    """The forks that have that layer type, as text, or None."""
    forks = [fork for fork, types in LAYER_TYPES.items() if type in types.split()]
    return " and ".join(forks) or None


def instead(name: str) -> str:
    """What would do instead of that field, layer type or value of a fork, for the end of an error.

    Empty where nothing is known.
    """
    return f"; {_INSTEAD[name]}" if name in _INSTEAD else ""

"""What other Caffe forks do differently in their files.

Fields that dns does not have are known by name, to say so when a definition uses one; field numbers
that mean something else in the fork with the official surgery layers are put right."""

from __future__ import annotations

from google.protobuf.message import Message

from caffe_dns.proto.caffe_pb2 import NetParameter

#: Fork -> message -> the fields that its caffe.proto adds and that definitions use.
_FORKS = {
    "SSD": {
        "LayerParameter": "annotated_data_param detection_evaluate_param "
        "multibox_loss_param video_data_param",
        "TransformationParameter": "crop_h crop_w resize_param noise_param distort_param "
        "expand_param emit_constraint",
        "SolverParameter": "eval_type ap_version show_per_class_result plateau_winsize",
    },
    "Faster R-CNN": {
        "LayerParameter": "roi_pooling_param smooth_l1_loss_param",
        "DropoutParameter": "scale_train",
    },
    "R-FCN": {
        "LayerParameter": "box_annotator_ohem_param psroi_pooling_param",
        "LossParameter": "pre_fixed_normalizer",
    },
    "DeepLab": {
        "LayerParameter": "adaptive_bias_channel_param bias_channel_param dense_crf_param "
        "domain_transform_param interp_param mat_read_param mat_write_param seg_accuracy_param "
        "unique_label_param",
        "TransformationParameter": "scale_factors crop_width crop_height",
        "BatchNormParameter": "update_global_stats",
        "ImageDataParameter": "ignore_label label_type",
    },
    "PSPNet": {"LayerParameter": "bn_param"},
    "SegNet": {
        "LayerParameter": "bn_param dense_image_data_param upsample_param",
        "LossParameter": "weight_by_label_freqs class_weighting",
        "DropoutParameter": "sample_weights_test",
    },
    "ENet": {
        "LayerParameter": "bn_param dense_image_data_param upsample_param",
        "ImageDataParameter": "label_divide_factor",
    },
    "CRF-RNN": {"LayerParameter": "multi_stage_meanfield_param"},
    "NVCaffe": {
        "LayerParameter": "forward_type backward_type forward_math backward_math debug "
        "cudnn_math_override detectnet_groundtruth_param detectnet_augmentation_param",
        "NetParameter": "default_forward_type default_backward_type default_forward_math "
        "default_backward_math global_grad_scale reduce_buckets eltwise_mem_sharing",
        "SolverParameter": "rampup_interval rampup_lr min_lr momentum_policy larc larc_policy "
        "larc_eta weight_decay_policy solver_data_type store_blobs_in_old_format",
        "BatchNormParameter": "scale_filler bias_filler scale_bias engine",
        "ConvolutionParameter": "cudnn_convolution_algo_seeker conv_algos_override",
        "DataParameter": "threads parser_threads cache shuffle",
    },
    "Intel Caffe": {
        "LayerParameter": "engine multinode mn_activation_param quantization_param reorg_param "
        "region_loss_param eval_detection_param spatial_dropout_param split_param",
        "NetParameter": "engine compile_net_state bn_stats_batch_size multinode",
        "SolverParameter": "engine warmup_iter warmup_start_lr local_lr_auto stagelr stageiter",
        "BatchNormParameter": "engine use_weight_bias bias_term filler stats_batch_size relu",
        "ConvolutionParameter": "relu negative_slope conv_algorithm",
        "DataParameter": "shuffle",
        "PoolingParameter": "avg_include_pad",
    },
}


def foreign_field(message: str, field: str) -> str | None:
    """The forks whose message of that name has that field, as text, or None."""
    forks = [fork for fork, fields in _FORKS.items() if field in fields.get(message, "").split()]
    return " and ".join(forks) or None


def restore_surgery_fields(message: Message) -> None:
    """Undo, in a net read from a binary file, that two forks use the same numbers for other things.

    In yiwenguo's fork the fields 140 and 141 of a layer are cconvolution_param and
    cinner_product_param; everywhere else they are elu_param and bias_param. The type tells which.
    Parsing keeps what it does not know, so the misread message still has every byte.
    """
    if not isinstance(message, NetParameter):
        return
    for layer in message.layer:
        if layer.type == "CConvolution" and layer.HasField("elu_param"):
            layer.cconvolution_param.MergeFromString(layer.elu_param.SerializeToString())
            layer.ClearField("elu_param")
        if layer.type == "CInnerProduct" and layer.HasField("bias_param"):
            layer.cinner_product_param.MergeFromString(layer.bias_param.SerializeToString())
            layer.ClearField("bias_param")

"""Defines all configuration keys as typed, frozen and strictly validated sections.

    base.yaml <- extends <- experiment.yaml <- --set a.b=c   ->  Config

The type, bounds and default of every key are defined only here, with the types of `config_values`. Functions receive
the section that they need, such as `MatchingConfig`, and never a dict.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ssd_dist.core.config_values import (
    BatchSize,
    Count,
    ExtraChannels,
    Fraction,
    FromList,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seconds,
    Seed,
)


class Section(BaseModel):
    """Base class of config sections; rejects unknown keys and never converts values from another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class AugmentationConfig(Section):
    """Random changes of training images.

    Flips and color changes are applied during training and keep precomputed targets valid. `crop` enables SSD's random
    crops and expansions with `data.targets: online`. With precomputed targets, prepare has already applied them to the
    augmented copies, and `largest_expansion` and `smallest_crop` must be the values that prepare used. The sides of an
    expansion are at most `largest_expansion` times the sides of the image; those of a crop are at least `smallest_crop`
    times the sides of the image. `flip` mirrors left to right, `flip_vertical` upside down. Brightness and hue are
    added (fractions of the value range and of the color circle); contrast and saturation are
    factors from [1 - x, 1 + x].
    """

    flip: bool = True
    flip_vertical: bool = False
    crop: bool = True
    largest_expansion: Annotated[float, Field(ge=1.0, le=16.0)] = 4.0
    smallest_crop: Annotated[float, Field(ge=0.05, le=1.0)] = 0.3
    brightness: Fraction = 0.125
    contrast: Fraction = 0.5
    saturation: Fraction = 0.5
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05


class DataConfig(Section):
    """Location of the prepared dataset, and how it is written and read.

    With `repeat_threshold` above 0, images of classes that occur in a smaller share of the training images than this
    appear more often in an epoch, and other images less often (Gupta et al. 2019, section 4.1).
    """

    dir: str = ""
    targets: Literal["precomputed", "online"] = "precomputed"
    views: PositiveInt = 1
    repeat_threshold: Fraction = 0.0
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 95
    cache_dir: str = ""
    on_corrupt: Literal["fail", "skip"] = "fail"
    allow_leakage: bool = False
    augmentation: AugmentationConfig = AugmentationConfig()


class AnchorConfig(Section):
    """Default boxes of SSD (Liu et al. 2016, section 2.2), as fractions of the image side.

    `sizes` has one entry per level and one more, for the geometric mean of the last level. `aspect_ratios` lists the
    ratios above 1 of each level; each gives a wide and a tall anchor.
    """

    sizes: Annotated[tuple[PositiveFloat, ...], FromList] = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)
    aspect_ratios: Annotated[tuple[tuple[PositiveFloat, ...], ...], FromList] = (
        (2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,),
    )  # fmt: skip
    center_variance: PositiveFloat = 0.1
    size_variance: PositiveFloat = 0.2

    @model_validator(mode="after")
    def _check_levels(self) -> "AnchorConfig":
        if len(self.aspect_ratios) != 6:
            raise ValueError(
                f"anchors.aspect_ratios needs one list for each of 6 levels, got {len(self.aspect_ratios)}"
            )
        if len(self.sizes) != 7:
            raise ValueError(f"anchors.sizes needs 7 entries (6 levels and one more), got {len(self.sizes)}")
        return self


class MatchingConfig(Section):
    """IoU matching: anchors are positive above `positive_iou`, negative below `negative_iou` and ignored between."""

    policy: Literal["multi", "one_to_one"] = "multi"
    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.4

    @model_validator(mode="after")
    def _check_order(self) -> "MatchingConfig":
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"matching.negative_iou ({self.negative_iou}) must not exceed "
                f"matching.positive_iou ({self.positive_iou})"
            )
        return self


class ModelConfig(Section):
    """Architecture and initial weights of the detector.

    `extra_channels` are the channels of the three levels above the backbone. They do not follow `width`.

    With `init_from`, a new run takes over the weights of a trained detector: a run folder, a SavedModel export, a
    checkpoint of a run or of tf-models-official, or a Keras weight file (.h5).

    In training, each group of `batch_norm_group` images of the global batch shares its batch-norm statistics, on any
    number of replicas. The group must divide the images that a replica processes at once, or be all images that all
    replicas process at once: then it is synchronized between the replicas, which is slower.
    """

    input_size: Annotated[int, Field(ge=32, le=2048)] = 300
    width: Annotated[float, Field(ge=0.1, le=4.0)] = 1.0
    head: Literal["ssd", "ssdlite"] = "ssdlite"
    extra_channels: Annotated[tuple[ExtraChannels, ExtraChannels, ExtraChannels], FromList] = (512, 256, 256)
    batch_norm_momentum: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    batch_norm_group: PositiveInt = 4
    init_from: str = ""


class BackboneConfig(Section):
    """The MobileNetV2 backbone. `weights` is `imagenet`, `none` or the path of a Keras weight file.

    With `model.init_from` the backbone comes from there: `imagenet` is not loaded, and a path is refused.
    `lr_scale` multiplies its learning rate; 0 freezes the backbone, including its batch norms. `frozen_blocks` freezes
    the first of its 17 blocks and the convolution before them; with 3 blocks, up to stride 4, a CPU trains about 1.4
    times as fast.
    """

    weights: Annotated[str, Field(min_length=1)] = "imagenet"
    lr_scale: NonNegativeFloat = 1.0
    freeze_batch_norm: bool = False
    frozen_blocks: Annotated[int, Field(ge=0, le=17)] = 0


class QuantizationConfig(Section):
    """Training for the int8 TFLite file.

    With `aware`, the network rounds kernels and activations to 8 bits as that file does, and learns the ranges of the
    activations. Such a run starts from a trained one (`model.init_from`), and the batch norms of its backbone are
    frozen, as with `backbone.freeze_batch_norm`. `per_tensor` rounds for files that are exported with --per_tensor:
    one scale per layer instead of one per output channel.
    """

    aware: bool = False
    per_tensor: bool = False


class LossConfig(Section):
    """Multibox loss (Liu et al. 2016, equations 1 to 3).

    An image's loss is its summed anchor losses divided by the `normalizer`: the number of positives, of images,
    or of classified anchors (positives and mined negatives), counted over the whole global batch or, with
    `normalize_per: image`, over that image only. `reduction` then sums or averages over the images of the global
    batch; `none` keeps one loss per image, whose gradient is that of the sum.
    """

    beta: PositiveFloat = 1.0
    normalizer: Literal["positives", "images", "classified"] = "positives"
    normalize_per: Literal["batch", "image"] = "batch"
    reduction: Literal["sum", "mean", "none"] = "sum"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    localization_weight: NonNegativeFloat = 1.0


class MiningConfig(Section):
    """Hard-negative mining: selects the `ratio` negatives with the highest loss per positive."""

    ratio: NonNegativeFloat = 3.0
    scope: Literal["image", "global"] = "image"
    min_negatives_per_image: Count = 0


# These ops are implemented in float32 only.
OPS_ALWAYS_IN_FP32 = ("iou", "decode", "nms", "mining")


class AmpConfig(Section):
    """Mixed precision. `loss_scale` is `dynamic` or a fixed factor; `force_fp32` lists ops that compute in float32.

    Without `loss` in `force_fp32`, the losses are computed in the 16-bit type of the policy. IoU, box decoding, NMS and
    mining always compute in float32. Their names (`iou`, `decode`, `nms`, `mining`), which configs of existing runs
    list, are accepted and dropped.
    """

    enabled: bool = False
    policy: Literal["mixed_float16", "mixed_bfloat16"] = "mixed_float16"
    loss_scale: Literal["dynamic"] | PositiveFloat = "dynamic"
    force_fp32: tuple[Literal["loss"], ...] = ("loss",)

    @field_validator("force_fp32", mode="before")
    @classmethod
    def _drop_ops_always_in_fp32(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple(op for op in value if op not in OPS_ALWAYS_IN_FP32)


class EmaConfig(Section):
    """Exponential moving average of the weights, for evaluation and export."""

    enabled: bool = True
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    update_every: PositiveInt = 1
    warmup_steps: Count = 0


class OptimizerConfig(Section):
    """AdamW or SGD with momentum; `clip_norm: 0` means no clipping.

    `weight_decay` is decoupled in both (Loshchilov and Hutter 2019): added to the step, times the learning rate, not to
    the gradient. Momentum does not amplify it in SGD: 5e-4 at momentum 0.9 in papers corresponds to about 5e-3 here.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: NonNegativeFloat = 10.0
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = True


class ScheduleConfig(Section):
    """Linear warm-up to `optimizer.lr`, then cosine decay to `min_lr`."""

    warmup_steps: Count = 100
    min_lr: NonNegativeFloat = 1e-5


class TrainConfig(Section):
    """Length, batch size and reproducibility of training. `steps` above 0 overrides `epochs`.

    `accumulate_steps` splits the batch of each replica into parts that are processed one after another. This saves
    memory. The gradient is the same if batch norms are frozen; otherwise their groups are formed within each part.
    `reduction` is how gradients are summed over groups of images and replicas: `fast` in float32, so that layouts
    differ by rounding; `exact` in fixed point, one group of `model.batch_norm_group` images after another, so that all
    layouts give the same bits.
    After `stall_seconds` without a step, counted from the first finished step, the stacks of all threads are printed
    and written to the run folder. A NaN or infinite loss stops the run, except for the first `recover_from_blowup`
    times: then training returns to the last checkpoint and skips the batch that caused it. With `jit_compile`, XLA
    compiles the network. Training ends after `early_stopping` evaluations in a row without a better `eval.metric`; 0:
    never.
    """

    epochs: PositiveInt = 40
    steps: Count = 0
    global_batch_size: BatchSize = 16
    seed: Seed = 0
    deterministic: bool = True
    accumulate_steps: PositiveInt = 1
    reduction: Literal["fast", "exact"] = "fast"
    log_every: PositiveInt = 20
    steps_per_loop: PositiveInt = 10
    stall_seconds: Seconds = 300.0
    recover_from_blowup: Count = 0
    early_stopping: Count = 0
    jit_compile: bool = False


class EvalConfig(Section):
    """When to evaluate, the split (`auto`: val, else test), and the metric that selects the best checkpoint.

    With `use_ema` the averaged weights are evaluated and kept as the best checkpoint; false evaluates and keeps the
    trained weights while EMA is on. Without EMA (`ema.enabled: false`) it has no effect. NMS receives the 1,000 best
    pairs of anchor and class of an image, so a larger `max_detections` has an effect only with tiles.
    """

    split: Annotated[str, Field(min_length=1)] = "auto"
    every_epochs: Count = 5
    every_steps: Count = 0
    metric: Literal["coco/AP", "coco/AP50", "voc07/mAP", "voc/mAP"] = "coco/AP"
    use_ema: bool = True
    batch_size: BatchSize = 16
    score_threshold: Fraction = 0.01
    nms_iou: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    max_detections: Annotated[int, Field(gt=0, le=100_000)] = 100

    @property
    def enabled(self) -> bool:
        """Whether training evaluates the model."""
        return self.every_epochs > 0 or self.every_steps > 0


class CheckpointConfig(Section):
    """How often to save (0: only at the end), how many checkpoints to keep, and how many of the best.

    With `async_save`, training waits only until its state is copied in memory; files are written in the background.
    """

    every_steps: Count = 500
    keep: PositiveInt = 3
    keep_best: PositiveInt = 1
    async_save: bool = False


class PreemptionConfig(Section):
    """Time from SIGTERM until the machine stops; the run must finish its step and save within it."""

    grace_seconds: Seconds = 30.0


class ClusterConfig(Section):
    """Distribution over devices and machines.

    `strategy: auto` uses all GPUs of all workers; `one_device` uses one GPU, or the CPU as one replica. On hosts
    without GPUs, `logical_cpus` splits the CPU of each worker into that many replicas.
    """

    strategy: Literal["auto", "one_device", "mirrored", "multi_worker"] = "auto"
    logical_cpus: Annotated[int, Field(ge=0, le=1024)] = 0
    health_timeout: Seconds = 15.0


class TrackingConfig(Section):
    """Trackers in addition to metrics.jsonl and TensorBoard; the packages listed in `also` must be installed.

    `profiler_port` above 0 lets TensorBoard's "capture profile" connect to the chief during training.
    """

    also: Annotated[tuple[Literal["wandb", "mlflow"], ...], FromList] = ()
    project: Annotated[str, Field(min_length=1)] = "ssd_dist"
    profiler_port: Annotated[int, Field(ge=0, le=65535)] = 0


class Config(Section):
    """The complete configuration of an experiment."""

    data: DataConfig = DataConfig()
    anchors: AnchorConfig = AnchorConfig()
    matching: MatchingConfig = MatchingConfig()
    model: ModelConfig = ModelConfig()
    backbone: BackboneConfig = BackboneConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    loss: LossConfig = LossConfig()
    mining: MiningConfig = MiningConfig()
    amp: AmpConfig = AmpConfig()
    ema: EmaConfig = EmaConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    preemption: PreemptionConfig = PreemptionConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check_together(self) -> "Config":
        if self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(
                f"schedule.min_lr ({self.schedule.min_lr}) must not exceed optimizer.lr ({self.optimizer.lr})"
            )
        if self.model.init_from and self.backbone.weights not in ("none", "imagenet"):
            raise ValueError(
                f"model.init_from ({self.model.init_from}) and backbone.weights ({self.backbone.weights}) both give "
                "the weights of the backbone; set backbone.weights: none, or remove model.init_from"
            )
        if self.backbone.frozen_blocks and self.backbone.weights == "none" and not self.model.init_from:
            raise ValueError(
                f"backbone.frozen_blocks ({self.backbone.frozen_blocks}) would keep random weights; set it to 0, or "
                "give trained weights by backbone.weights or model.init_from"
            )
        self._check_quantization()
        return self

    def _check_quantization(self) -> None:
        if self.quantization.per_tensor and not self.quantization.aware:
            raise ValueError(
                "quantization.per_tensor has an effect only with quantization.aware; set quantization.aware: true, or "
                "use --per_tensor of ssd-export to quantize a run after training"
            )
        if self.quantization.aware and not self.model.init_from:
            raise ValueError(
                "quantization.aware needs the weights of a trained run; train without it first, and give that run as "
                "model.init_from"
            )
        if self.quantization.aware and self.amp.enabled:
            raise ValueError(
                "quantization.aware simulates 8-bit integers in float32, not in 16 bits; set amp.enabled: false"
            )

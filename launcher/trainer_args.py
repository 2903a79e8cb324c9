"""Arguments of Lightning's Trainer; their descriptions are Lightning's own (Apache License 2.0).

Generated from Lightning 2.6 by scripts/generate-trainer-args. Do not edit.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from launcher.spec_fields import Batches, ClassSpec, ElapsedTime, Section


class TrainerArgs(Section):
    """Arguments of lightning.pytorch.Trainer that YAML can express. Those left out keep Lightning's defaults."""

    elsewhere: ClassVar[dict[str, str]] = {
        "accelerator": "chosen by the target and by resources.gpus_per_node",
        "devices": "use resources.tasks_per_node or resources.gpus_per_node",
        "num_nodes": "use resources.nodes",
        "default_root_dir": "use --runs-root or LAUNCHER_RUNS",
        "enable_checkpointing": "use the checkpoint section; the launcher always saves",
        "fast_dev_run": "it would switch off checkpoints and loggers; use --set trainer.max_steps=5",
        "barebones": "it would switch off checkpoints and loggers; use trainer.logger: false and the like",
    }

    strategy: str | ClassSpec = "auto"
    """Supports different training strategies with aliases as well custom strategies."""
    precision: (
        Literal[64, 32, 16]
        | Literal[
            "transformer-engine",
            "transformer-engine-float16",
            "16-true",
            "16-mixed",
            "bf16-true",
            "bf16-mixed",
            "32-true",
            "64-true",
        ]
        | Literal["64", "32", "16", "bf16"]
        | None
    ) = None
    """Double precision (64, '64' or '64-true'), full precision (32, '32' or '32-true'), 16bit mixed precision
    (16, '16', '16-mixed') or bfloat16 mixed precision ('bf16', 'bf16-mixed'). Can be used on CPU, GPU, TPUs,
    or HPUs."""
    logger: ClassSpec | list[ClassSpec] | bool | None = None
    """Logger (or iterable collection of loggers) for experiment tracking. A `True` value uses the default
    `TensorBoardLogger` if it is installed, otherwise `CSVLogger`. `False` will disable logging. If multiple
    loggers are provided, local files (checkpoints, profiler traces, etc.) are saved in the `log_dir` of the
    first logger."""
    callbacks: list[ClassSpec] | ClassSpec | None = None
    """Add a callback or list of callbacks."""
    max_epochs: Annotated[int, Field(ge=-1)] | None = None
    """Stop training once this number of epochs is reached. Disabled by default (None). If both max_epochs and
    max_steps are not specified, defaults to `max_epochs = 1000`. To enable infinite training, set
    `max_epochs = -1`."""
    min_epochs: Annotated[int, Field(ge=0)] | None = None
    """Force training for at least these many epochs. Disabled by default (None)."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Stop training after this number of steps. Disabled by default (-1). If `max_steps = -1` and `max_epochs =
    None`, will default to `max_epochs = 1000`. To enable infinite training, set `max_epochs` to `-1`."""
    min_steps: Annotated[int, Field(ge=0)] | None = None
    """Force training for at least these number of steps. Disabled by default (`None`)."""
    max_time: ElapsedTime | None = None
    """Stop training after this amount of time has passed. Disabled by default (`None`). The time duration can
    be specified in the format DD:HH:MM:SS (days, hours, minutes seconds), as a `timedelta`, or a dictionary
    with keys that will be passed to `timedelta`."""
    limit_train_batches: Batches | None = None
    """How much of training dataset to check (float = fraction, int = num_batches). Value is per device."""
    limit_val_batches: Batches | None = None
    """How much of validation dataset to check (float = fraction, int = num_batches). Value is per device."""
    limit_test_batches: Batches | None = None
    """How much of test dataset to check (float = fraction, int = num_batches). Value is per device."""
    limit_predict_batches: Batches | None = None
    """How much of prediction dataset to check (float = fraction, int = num_batches). Value is per device."""
    overfit_batches: Batches = 0.0
    """Overfit a fraction of training/validation data (float) or a set number of batches (int)."""
    val_check_interval: Annotated[Batches, Field(gt=0)] | ElapsedTime | None = None
    """How often to check the validation set. Pass a `float` in the range [0.0, 1.0] to check after a fraction
    of the training epoch. Pass an `int` to check after a fixed number of training batches. An `int` value
    can only be higher than the number of training batches when `check_val_every_n_epoch=None`, which
    validates after every `N` training batches across epochs or during iteration-based training.
    Additionally, accepts a time-based duration as a string "DD:HH:MM:SS", a `timedelta`, or a dict of kwargs
    to `timedelta`. When time-based, validation triggers once the elapsed wall-clock time since the last
    validation exceeds the interval; the check occurs after the current batch completes, the validation loop
    runs, and the timer is reset."""
    check_val_every_n_epoch: Annotated[int, Field(ge=1)] | None = 1
    """Perform a validation loop after every `N` training epochs. If `None`, validation will be done solely
    based on the number of training batches, requiring `val_check_interval` to be an integer value. When used
    together with a time-based `val_check_interval` and `check_val_every_n_epoch` > 1, validation is aligned
    to epoch multiples: if the interval elapses before the next multiple-N epoch, validation runs at the
    start of that epoch (after the first batch) and the timer resets; if it elapses during a multiple-N
    epoch, validation runs after the current batch. For `None` or `1` cases, the time-based behavior of
    `val_check_interval` applies without additional alignment."""
    num_sanity_val_steps: Annotated[int, Field(ge=-1)] | None = None
    """Sanity check runs n validation batches before starting the training routine. Set it to `-1` to run all
    batches in all validation dataloaders."""
    log_every_n_steps: Annotated[int, Field(ge=0)] | None = None
    """How often to log within steps."""
    enable_progress_bar: bool | None = None
    """Whether to enable to progress bar by default."""
    enable_model_summary: bool | None = None
    """Whether to enable model summarization by default."""
    accumulate_grad_batches: Annotated[int, Field(ge=1)] = 1
    """Accumulates gradients over k batches before stepping the optimizer."""
    gradient_clip_val: Annotated[float, Field(ge=0)] | None = None
    """The value at which to clip gradients. Passing `gradient_clip_val=None` disables gradient clipping. If
    using Automatic Mixed Precision (AMP), the gradients will be unscaled before."""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """The gradient clipping algorithm to use. Pass `gradient_clip_algorithm="value"` to clip by value, and
    `gradient_clip_algorithm="norm"` to clip by norm. By default it will be set to `"norm"`."""
    deterministic: bool | Literal["warn"] | None = None
    """If `True`, sets whether PyTorch operations must use deterministic algorithms. Set to `"warn"` to use
    deterministic algorithms whenever possible, throwing warnings on operations that don't support
    deterministic mode. If not set, defaults to `False`."""
    benchmark: bool | None = None
    """The value (`True` or `False`) to set `torch.backends.cudnn.benchmark` to. The value for
    `torch.backends.cudnn.benchmark` set in the current session will be used (`False` if not manually set).
    If `deterministic` is set to `True`, this will default to `False`. Override to manually set a different
    value."""
    inference_mode: bool = True
    """Whether to use `inference_mode` or `no_grad` during evaluation (`validate`/`test`/`predict`)."""
    use_distributed_sampler: bool = True
    """Whether to wrap the DataLoader's sampler with `DistributedSampler`. If not specified this is toggled
    automatically for strategies that require it. By default, it will add `shuffle=True` for the train
    sampler and `shuffle=False` for validation/test/predict samplers. If you want to disable this logic, you
    can pass `False` and add your own distributed sampler in the dataloader hooks. If `True` and a
    distributed sampler was already added, Lightning will not replace the existing one. For iterable-style
    datasets, we don't do this automatically."""
    profiler: ClassSpec | Literal["simple", "advanced", "pytorch", "xla"] | None = None
    """To profile individual steps during training and assist in identifying bottlenecks."""
    detect_anomaly: bool = False
    """Enable anomaly detection for the autograd engine."""
    plugins: ClassSpec | list[ClassSpec] | None = None
    """Plugins allow modification of core behavior like ddp and amp, and enable custom lightning plugins."""
    sync_batchnorm: bool = False
    """Synchronize batch norm layers between process groups/whole world."""
    reload_dataloaders_every_n_epochs: Annotated[int, Field(ge=0)] = 0
    """Set to a positive integer to reload dataloaders every n epochs."""
    enable_autolog_hparams: bool = True
    """Whether to log hyperparameters at the start of a run."""
    model_registry: str | None = None
    """The name of the model being uploaded to Model hub."""

"""The shipped configs, by name: a config that a user adds is no concern of the tests."""

EXPERIMENTS = [
    *("boolean", "cifar100_clip", "clip_probe", "clip_probe_ddp_2to4", "clip_probe_dense", "clip_probe_fpe_mlp"),
    *("clip_probe_wide_sparse", "deep_probe", "fashion_mnist", "glyph_cnn", "imagenet100_clip", "imagenet1k_clip"),
    *("recipes/rewire", "recipes/split_and_rewire", "recipes/two_splits"),
]
TRAINERS = ["trainer/ddp_cpu", "trainer/ddp_gpu"]
ADDED = [
    *("logger/csv", "logger/mlflow", "logger/tensorboard", "logger/wandb"),
    *("debug/fast", "debug/overfit", "debug/profiler"),
]
"""Configs that are added to another one by a second ``--config``."""
STUDIES = [
    *("boolean", "boolean_frozen", "boolean_groups", "boolean_layouts", "boolean_recipe", "boolean_recipes"),
    *(
        "boolean_refit",
        "boolean_sweeps",
        "children",
        "clip_probe",
        "clip_probe_alpha_8",
        "clip_probe_frozen",
        "clip_probe_rates",
    ),
    *("clip_probe_recipes", "clip_probe_refit", "clip_probe_refit_long", "cnn", "cnn_convolutions", "cnn_rates"),
    *("deep", "deep_rates", "interference", "interference_deep", "interference_networks", "open_problem", "pixels"),
    *("pixels_fashion_mnist", "robustness", "robustness_rates", "transformer", "transformer_rates"),
]

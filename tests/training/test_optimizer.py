"""Optimizers equal their published algorithms; an overflow on one replica skips the step on all replicas."""

import numpy as np
import pytest
import tensorflow as tf
from support.reference_training import AdamWReference, SgdReference, clip_by_global_norm_reference, ema_reference
from support.replicas import copies, mirrored, share_rows, trace

from ssd_dist.core.config import EmaConfig, OptimizerConfig, ScheduleConfig
from ssd_dist.training.ema import ExponentialMovingAverage
from ssd_dist.training.loss_scale import LossScale, LossScaleOptimizer
from ssd_dist.training.optimizer import PackedOptimizer, clip_factor
from ssd_dist.training.parameter_groups import ParameterGroup
from ssd_dist.training.schedule import CosineWarmupSchedule

pytestmark = pytest.mark.usefixtures("four_cpus")

SHAPES = ((3, 2), (4,), (2, 2), ())
SCHEDULE = CosineWarmupSchedule(0.05, total_steps=20, config=ScheduleConfig(warmup_steps=3, min_lr=0.001))
DYNAMIC_SCALE = 1024.0


class Setup:
    """Two parameter groups, one with weight decay at a tenth of the rate and one without decay, and their optimizer."""

    def __init__(self, config: OptimizerConfig, scale: float = 1.0, dynamic: bool = False, replicas: int = 1) -> None:
        rng = np.random.default_rng(0)
        self.strategy = mirrored(replicas)
        with self.strategy.scope():
            variables = [tf.Variable(rng.normal(size=shape).astype(np.float32)) for shape in SHAPES]
            self.groups = (
                ParameterGroup("slow", tuple(variables[:2]), 0.1, config.weight_decay),
                ParameterGroup("fast", tuple(variables[2:]), 1.0, 0.0),
            )
            self.ema = ExponentialMovingAverage(self.groups, EmaConfig())
            self.loss_scale = LossScale(scale, dynamic)
            self.inner = PackedOptimizer(self.groups, config, SCHEDULE, self.ema)
            self.optimizer = LossScaleOptimizer(self.inner, self.loss_scale)
        self._step = trace(self.optimizer.apply, replicas)

    def apply(self, gradients: list[np.ndarray]) -> None:
        """Applies one step; replica r uses row r of the scaled gradients [replicas, ...]."""
        shared = share_rows(self.strategy, gradients)
        self._step([_first_row(self.strategy, value) for value in shared])

    def state(self) -> dict[str, list[np.ndarray]]:
        """Returns every variable of the run on each replica, by name."""
        slots = {f"{name}/{i}": slot for name, s in self.inner.slots.items() for i, slot in enumerate(s)}
        weights = {f"weight{i}": v for i, v in enumerate(self.optimizer.variables_to_train)}
        averages = {f"average/{name}": average for name, average in self.ema.averages.items()}
        counters = {"applied": self.inner.applied_steps, "updates": self.ema.updates}
        return {
            name: copies(self.strategy, variable)
            for name, variable in {**weights, **slots, **averages, **counters}.items()
        }


def _first_row(strategy, value):
    return strategy.run(lambda row: row[0], args=(value,))


def draw_gradients(rng: np.random.Generator, replicas: int = 1, size: float = 1.0) -> list[np.ndarray]:
    return [(size * rng.normal(size=(replicas, *shape))).astype(np.float32) for shape in SHAPES]


def create_reference(config: OptimizerConfig, weights: np.ndarray, weight_decay: float):
    if config.name == "adamw":
        return AdamWReference(weights, weight_decay)
    return SgdReference(weights, config.momentum, config.nesterov, weight_decay)


CONFIGS = [
    OptimizerConfig(name="adamw", weight_decay=0.05, clip_norm=0.0),
    OptimizerConfig(name="adamw", weight_decay=0.0, clip_norm=1.5),
    OptimizerConfig(name="sgd", weight_decay=0.05, clip_norm=0.0),
    OptimizerConfig(name="sgd", nesterov=False, momentum=0.7, weight_decay=0.05, clip_norm=1.5),
    OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=2.0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-m{c.momentum}-d{c.weight_decay}-c{c.clip_norm}")
@pytest.mark.parametrize(("replicas", "scale"), [(1, 1.0), (1, 512.0), (2, 64.0)])
def test_several_steps_equal_the_reference(config, replicas, scale):
    setup = Setup(config, scale, replicas=replicas)
    rng = np.random.default_rng(1)
    initial = [variable.numpy() for variable in setup.optimizer.variables_to_train]
    decays = [config.weight_decay, config.weight_decay, 0.0, 0.0]
    rate_scales = [0.1, 0.1, 1.0, 1.0]
    references = [create_reference(config, w, decay) for w, decay in zip(initial, decays, strict=True)]
    trajectory = []
    for step in range(8):
        gradients = draw_gradients(rng, replicas, size=[1.0, 0.01, 100.0][step % 3])
        setup.apply([gradient * np.float32(scale) for gradient in gradients])
        # Sum over replicas, then clip by the global norm: not per replica, not per group.
        total = clip_by_global_norm_reference([g.astype(np.float64).sum(0) for g in gradients], config.clip_norm)
        rate = float(SCHEDULE(tf.constant(step)))
        for reference, gradient, rate_scale in zip(references, total, rate_scales, strict=True):
            reference.step(gradient, rate * rate_scale)
        for variable, reference in zip(setup.optimizer.variables_to_train, references, strict=True):
            for copy in copies(setup.strategy, variable):
                np.testing.assert_allclose(copy, reference.weights, rtol=1e-5, atol=2e-6)
        trajectory.append(np.concatenate([reference.weights.ravel() for reference in references]))
    assert int(setup.inner.applied_steps.numpy()) == 8
    averages = np.concatenate([setup.ema.averages[group.name].numpy() for group in setup.groups])
    start = np.concatenate([weights.ravel() for weights in initial])
    np.testing.assert_allclose(averages, ema_reference(start, trajectory, 0.999)[-1], rtol=1e-4, atol=1e-5)


def test_decay_is_decoupled_from_the_gradient_and_scaled_by_the_rate():
    # With zero gradients Adam does not move, and only the decay acts: w (1 - rate x lr_scale x decay).
    setup = Setup(OptimizerConfig(name="adamw", weight_decay=0.5))
    before = [variable.numpy() for variable in setup.optimizer.variables_to_train]
    rate = float(setup.optimizer.current_learning_rate())
    setup.apply([np.zeros((1, *shape), np.float32) for shape in SHAPES])
    after = [variable.numpy() for variable in setup.optimizer.variables_to_train]
    for index, factor in enumerate([1 - rate * 0.1 * 0.5] * 2 + [1.0] * 2):
        np.testing.assert_allclose(after[index], before[index] * factor, rtol=1e-6)


def test_missing_gradients_are_zero():
    setup = Setup(OptimizerConfig(name="sgd", weight_decay=0.0))
    before = [variable.numpy() for variable in setup.optimizer.variables_to_train]
    tf.function(lambda: setup.strategy.run(setup.optimizer.apply, args=([None, tf.ones([4]), None, None],)))()
    after = [variable.numpy() for variable in setup.optimizer.variables_to_train]
    assert [(a != b).any() for a, b in zip(after, before, strict=True)] == [False, True, False, False]


@pytest.mark.parametrize("clip_norm", [0.5, 5.0, 1e9])
def test_clip_equals_the_reference(clip_norm):
    rng = np.random.default_rng(2)
    gradients = [rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=7).astype(np.float32)]
    factor = clip_factor(tf.linalg.global_norm([tf.constant(g) for g in gradients]), clip_norm)
    for gradient, expected in zip(gradients, clip_by_global_norm_reference(gradients, clip_norm), strict=True):
        np.testing.assert_allclose(gradient * factor, expected, rtol=1e-6)


def test_clipping_zero_gradients_does_not_divide_by_zero():
    assert clip_factor(tf.linalg.global_norm([tf.zeros([3])]), 1.0) == 1


BAD = {
    "infinity": (0.0, np.inf),
    "minus infinity": (0.0, -np.inf),
    "not a number": (np.nan, 0.0),
    "infinities of both signs": (np.inf, -np.inf),
    # Finite on each replica; only the sum overflows.
    "overflow of the sum": (3e38, 3e38),
}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
def test_an_overflow_on_one_replica_skips_the_step_on_all_replicas(name, values):
    # If only the gradient of replica 0 were checked, the infinity of replica 1 would reach the weights.
    setup = Setup(OptimizerConfig(name=name), DYNAMIC_SCALE, dynamic=True, replicas=2)
    rng = np.random.default_rng(3)
    setup.apply([g * DYNAMIC_SCALE for g in draw_gradients(rng, 2)])
    before, rate = setup.state(), float(setup.optimizer.current_learning_rate())
    bad = draw_gradients(rng, 2)
    bad[0][0, 1, 1] = values[0]
    bad[0][1, 1, 1] = values[1]
    setup.apply(bad)
    after = setup.state()
    for key, parts in after.items():
        np.testing.assert_array_equal(parts, before[key], err_msg=key)
    assert float(setup.optimizer.current_learning_rate()) == rate
    assert copies(setup.strategy, setup.loss_scale.scale) == [DYNAMIC_SCALE / 2] * 2
    assert copies(setup.strategy, setup.loss_scale.skipped_steps) == [1, 1]
    assert copies(setup.strategy, setup.loss_scale.good_steps) == [0, 0]

    # The next finite step is applied, with the new scale.
    setup.apply([g * DYNAMIC_SCALE / 2 for g in draw_gradients(rng, 2)])
    assert copies(setup.strategy, setup.inner.applied_steps) == [2, 2]
    for parts in setup.state().values():
        assert np.isfinite(parts[0]).all()
        np.testing.assert_array_equal(parts[0], parts[1])


def test_a_gradient_that_is_not_finite_skips_the_step_without_mixed_precision_too():
    setup = Setup(OptimizerConfig())
    before = setup.state()
    gradients = draw_gradients(np.random.default_rng(4))
    gradients[3][0] = np.nan
    setup.apply(gradients)
    for key, parts in setup.state().items():
        np.testing.assert_array_equal(parts, before[key], err_msg=key)
    assert float(setup.loss_scale.scale.numpy()) == 1.0
    assert int(setup.loss_scale.skipped_steps.numpy()) == 1


def test_a_loss_scale_that_is_a_power_of_two_does_not_change_the_weights():
    # It only changes the exponent of the gradients: the weights are equal bit for bit.
    weights = []
    for scale in (1.0, 2.0**15):
        setup = Setup(OptimizerConfig(clip_norm=1.0), scale)
        rng = np.random.default_rng(5)
        for _ in range(4):
            setup.apply([gradient * np.float32(scale) for gradient in draw_gradients(rng)])
        weights.append([variable.numpy() for variable in setup.optimizer.variables_to_train])
    for plain, scaled in zip(*weights, strict=True):
        np.testing.assert_array_equal(plain, scaled)
